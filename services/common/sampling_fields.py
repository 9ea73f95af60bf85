"""The table of sampling fields: each attribute of `Sampling` is a row, written where it stands.

A row says what its values are and how far they go; its default is the neutral value, and its name
is the one of the field in bodies and messages. Parsing, checks, defaults, both doors, the wire, the
journal and the page about the door follow from the rows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from services.common.errors import InvalidArgument

MAX_INT32 = (1 << 31) - 1
_ROW = "sampling field"


class Kind(StrEnum):
    """What a field's values are, in JSON's words."""

    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    IDS = "array"
    """Token ids."""
    BIASES = "object"
    """Numbers by token id."""


@dataclass(frozen=True, slots=True)
class SamplingField:
    """A row. `low` and `high` bound a number or an integer, and each bias."""

    name: str
    kind: Kind
    neutral: Any
    """What changes nothing; None: absence is a value of its own; MISSING: every request has one."""
    low: float = 0
    high: float = MAX_INT32
    above_low: bool = False
    """`low` itself is out of range."""
    below_high: bool = False
    most: int = 0
    """Entries of ids and biases."""
    of_model: bool = False
    """A model may come with a value of its own."""
    asked: bool = True
    """Clients ask for it by this name; False: it follows from other things."""
    settled: tuple[float, ...] = ()
    """May be asked for, and becomes something else before a request is made of it."""

    @property
    def bounds(self) -> str:
        """The range, in the notation of intervals; empty where there is none."""
        if self.kind in (Kind.BOOLEAN, Kind.IDS):
            return ""
        opening, closing = "(" if self.above_low else "[", ")" if self.below_high else "]"
        return f"{opening}{_plain(self.low)}, {_plain(self.high)}{closing}"

    @property
    def optional(self) -> bool:
        """Absence is a value of its own."""
        return self.neutral is None

    def holds(self, value: float) -> bool:
        """The value lies in range."""
        above = self.low < value if self.above_low else self.low <= value
        below = value < self.high if self.below_high else value <= self.high
        return above and below

    def check(self, value: Any) -> None:
        """Raises InvalidArgument for what nobody may ask for."""
        if self.kind in (Kind.IDS, Kind.BIASES) and len(value) > self.most:
            raise InvalidArgument(
                f"{self.name} has {len(value)} entries, at most {self.most}", field=self.name
            )
        for number in self._numbers(value):
            rounded = number if self.kind is Kind.INTEGER else _single(number)
            if not (self.holds(number) and self.holds(rounded)):
                raise InvalidArgument(
                    f"{self.name} must lie in {self.bounds}, not {number}", field=self.name
                )

    def check_held(self, value: Any) -> None:
        """Raises InvalidArgument for what no request has."""
        for number in self._numbers(value):
            if not math.isfinite(number) or not self.holds(number) or number in self.settled:
                raise InvalidArgument(
                    f"{self.name} must lie in {self.bounds}"
                    + "".join(f" and not be {_plain(other)}" for other in self.settled),
                    field=self.name,
                )

    def _numbers(self, value: Any) -> Iterable[float]:
        if self.kind in (Kind.NUMBER, Kind.INTEGER):
            return (value,)
        return value.values() if self.kind is Kind.BIASES else ()

    def check_ids(self, value: Any, vocabulary_size: int) -> None:
        """Raises InvalidArgument for ids that are no tokens of the model."""
        if self.kind not in (Kind.IDS, Kind.BIASES):
            return
        for token_id in value:
            if not 0 <= token_id < vocabulary_size:
                raise InvalidArgument(
                    f"{self.name}: {token_id} is no token of this model, whose ids go from 0 to "
                    f"{vocabulary_size - 1}",
                    field=self.name,
                )

    def rounded(self, value: Any) -> Any:
        """As the wire carries it, so that every holder has the same."""
        return _ROUNDED[self.kind](value)

    def read(self, message: Any) -> Any:
        """The value in a message that has a field of this name."""
        if self.optional and not message.HasField(self.name):
            return None
        return _READ[self.kind](getattr(message, self.name))


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _single(value: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded


def _same(value: Any) -> Any:
    return value


def _biases(value: Mapping[int, float]) -> Mapping[int, float]:
    return MappingProxyType({token_id: _single(bias) for token_id, bias in value.items()})


_ROUNDED: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.NUMBER: _single,
    Kind.INTEGER: _same,
    Kind.BOOLEAN: _same,
    Kind.IDS: tuple,
    Kind.BIASES: _biases,
}
_READ: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.NUMBER: _same,
    Kind.INTEGER: _same,
    Kind.BOOLEAN: _same,
    Kind.IDS: tuple,
    Kind.BIASES: lambda value: MappingProxyType(dict(value)),
}


def number(neutral: float, low: float, high: float, **more: Any) -> Any:
    """An attribute that is a number, as a row."""
    return _attribute(Kind.NUMBER, neutral, low=low, high=high, **more)


def integer(neutral: Any = MISSING, low: int = 0, high: int = MAX_INT32, **more: Any) -> Any:
    """An attribute that is an integer, as a row; without `neutral` each request has one."""
    return _attribute(Kind.INTEGER, neutral, low=low, high=high, **more)


def boolean(**more: Any) -> Any:
    """An attribute that is off by itself, as a row."""
    return _attribute(Kind.BOOLEAN, False, **more)


def ids(most: int = 0, **more: Any) -> Any:
    """An attribute that holds token ids, as a row."""
    return _attribute(Kind.IDS, (), most=most, **more)


def biases(most: int, low: float, high: float) -> Any:
    """An attribute that holds numbers by token id, as a row."""
    return _attribute(Kind.BIASES, MappingProxyType({}), most=most, low=low, high=high)


def _attribute(kind: Kind, neutral: Any, **more: Any) -> Any:
    metadata = {_ROW: (kind, more)}
    if kind is Kind.BIASES:  # a mapping cannot be hashed, as a default must be
        return field(default_factory=lambda: neutral, metadata=metadata)
    return field(default=neutral, metadata=metadata)


def table_of(sampling: type[Any]) -> Mapping[str, SamplingField]:
    """The rows of a class, by name."""
    rows = {}
    for attribute in fields(sampling):
        if _ROW in attribute.metadata:
            kind, more = attribute.metadata[_ROW]
            neutral = attribute.default
            if attribute.default_factory is not MISSING:
                neutral = attribute.default_factory()
            rows[attribute.name] = SamplingField(attribute.name, kind, neutral, **more)
    return MappingProxyType(rows)
