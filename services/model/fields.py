"""Single values of a `config.json`: each is read with its type and range, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument

SIZE_LIMIT = 1 << 24
"""No single size of a model is larger."""
NUMBER_LIMIT = 1e30


def refuse(field: str, message: str) -> InvalidArgument:
    """The error for a field of config.json."""
    return InvalidArgument(f"config.json: {field}: {message}", field=field)


def size(config: Mapping[str, Any], field: str, limit: int = SIZE_LIMIT) -> int:
    """An integer from 1 to the limit."""
    value = config.get(field)
    if type(value) is not int or not 0 < value <= limit:
        raise refuse(field, f"must be an integer from 1 to {limit}")
    return value


def number(config: Mapping[str, Any], field: str) -> float:
    """A positive, finite number, written with or without a point."""
    value: Any = config.get(field)
    if type(value) not in (int, float) or not 0 < value < NUMBER_LIMIT:
        raise refuse(field, "must be a positive number")
    return float(value)


def optional_number(config: Mapping[str, Any], field: str) -> float | None:
    """A positive number, or None where it is absent or null."""
    return None if config.get(field) is None else number(config, field)


def flag(config: Mapping[str, Any], field: str) -> bool:
    """true or false."""
    value = config.get(field)
    if type(value) is not bool:
        raise refuse(field, "must be true or false")
    return value


def numbers(config: Mapping[str, Any], field: str, count: int) -> list[float]:
    """A list of so many positive numbers."""
    value = config.get(field)
    if not isinstance(value, list) or len(value) != count:
        raise refuse(field, f"must be a list of {count} numbers")
    return [number({field: one}, field) for one in value]
