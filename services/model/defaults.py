"""The sampling values that a model comes with, from its generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_k": (-1, (1 << 31) - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 2.0),
}
_NEVER = {("top_p", 0), ("repetition_penalty", 0), ("min_p", 1)}


def parse_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Held to what a client may ask for, since a client's request is where they end up.

    Raises InvalidArgument naming the field.
    """
    found: dict[str, float] = {}
    for name, (low, high) in _RANGES.items():
        value = generation.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not low <= value <= high or (name, value) in _NEVER:
            raise _refuse(name, f"must lie in [{low:g}, {high:g}], and is {value!a:.40}")
        if name == "top_k" and value != int(value):
            raise _refuse(name, "must be an integer")
        found[name] = value
    return found


def _refuse(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"generation_config.json: {field}: {message}", field=field)
