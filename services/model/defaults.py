"""The sampling values that a model comes with, from its generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING
from services.common.sampling_fields import Kind


def parse_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Held to what a client may ask for, since a client's request is where they end up.

    Raises InvalidArgument naming the field.
    """
    found: dict[str, float] = {}
    for name, row in SAMPLING.items():
        value = generation.get(name)
        if value is None or not row.of_model:
            continue
        if type(value) not in (int, float) or not row.holds(value) or value in row.settled:
            raise _refuse(name, f"must lie in {row.bounds}, and is {value!a:.40}")
        if row.kind is Kind.INTEGER and value != int(value):
            raise _refuse(name, "must be an integer")
        found[name] = int(value) if row.kind is Kind.INTEGER else value
    return found


def _refuse(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"generation_config.json: {field}: {message}", field=field)
