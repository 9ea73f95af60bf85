"""Texts that know which of their characters the chat template wrote.

Whether a special token's text in a prompt is that token, or is text that a user typed, depends on
who wrote it. A template's own literals are `Written`; what comes in a message is a plain `str`, and
so is what any operation makes that this class does not follow. So an operation that nobody thought
of loses a token of the template's, and never makes one out of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

_TEMPLATE = b"\1"


class Written(str):
    """A text and, for each of its characters, 1 where the template wrote it and 0 elsewhere."""

    __slots__ = ("_origin",)
    _origin: bytes

    def __new__(cls, text: str, origin: bytes) -> Written:
        made = super().__new__(cls, text)
        made._origin = origin
        return made

    def __str__(self) -> Written:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> Written:
        if isinstance(key, slice):
            return Written(super().__getitem__(key), self._origin[key])
        index = range(len(self))[key]
        return Written(super().__getitem__(index), self._origin[index : index + 1])

    def __add__(self, other: str) -> Written:
        if not _follows(other):
            return NotImplemented
        return Written(super().__add__(other), self._origin + origin_of(other))

    def __radd__(self, other: str) -> Written:
        if not _follows(other):
            return NotImplemented
        return Written(str.__add__(other, self), origin_of(other) + self._origin)

    def __mul__(self, times: SupportsIndex) -> Written:
        return Written(super().__mul__(times), self._origin * times.__index__())

    __rmul__ = __mul__

    def join(self, parts: Iterable[str]) -> Written:
        texts = list(parts)
        return Written(super().join(texts), self._origin.join(map(origin_of, texts)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        return written_as(new).join(self.split(old, count))

    def strip(self, characters: str | None = None, /) -> Written:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None, /) -> Written:
        return self[len(self) - len(super().lstrip(characters)) :]

    def rstrip(self, characters: str | None = None, /) -> Written:
        return self[: len(super().rstrip(characters))]

    def removeprefix(self, prefix: str, /) -> Written:
        return self[len(prefix) :] if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Written:
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def partition(self, separator: str, /) -> tuple[str, str, str]:
        first, found, _ = super().partition(separator)
        return self[: len(first)], self[len(first) : len(first + found)], self[len(first + found) :]

    def rpartition(self, separator: str, /) -> tuple[str, str, str]:
        first, found, _ = super().rpartition(separator)
        return self[: len(first)], self[len(first) : len(first + found)], self[len(first + found) :]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._cut(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._cut(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._cut(super().splitlines(keepends), None)

    def upper(self) -> str:
        return self._recased(str.upper)

    def lower(self) -> str:
        return self._recased(str.lower)

    def title(self) -> str:
        return self._recased(str.title)

    def capitalize(self) -> str:
        return self._recased(str.capitalize)

    def _cut(self, pieces: list[str], separator: str | None) -> list[str]:
        """The pieces again, each with its characters' origin; between two lies the separator, or
        white space when it is None."""
        cut: list[str] = []
        position = 0
        for piece in pieces:
            if separator is None:
                position = self.find(piece, position)
            cut.append(self[position : position + len(piece)])
            position += len(piece) + len(separator or "")
        return cut

    def _recased(self, change: Callable[[str], str]) -> str:
        changed = change(str.__str__(self))
        return Written(changed, self._origin) if len(changed) == len(self) else changed


def written(text: str) -> Written:
    """A text that is all the template's."""
    return Written(text, _TEMPLATE * len(text))


def written_as(text: str) -> Written:
    """The same text; a plain one has nothing of the template's."""
    return text if isinstance(text, Written) else Written(text, bytes(len(text)))


def origin_of(text: str) -> bytes:
    """One byte a character: 1 where the template wrote it."""
    return text._origin if isinstance(text, Written) else bytes(len(text))


def _follows(other: Any) -> bool:
    """Markup has rules of its own for what it is added to."""
    return isinstance(other, str) and not hasattr(other, "__html__")
