"""What the text of an answer is made of: what is said, what is thought, which tools are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the thoughts before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A piece of a call of a tool."""

    index: int
    """The call's number within its choice, from 0."""
    call_id: str
    name: str
    """Set in the piece that begins a call, empty later."""
    arguments: str
    """A fragment; those of a call, joined, are the JSON that was written."""


Part = Said | Thought | Called


class Numbering:
    """Gives the calls of one choice their numbers and ids, which are the same wherever the text is
    told."""

    def __init__(self, generation_id: str, choice: int, tools: Sequence[str]) -> None:
        self.count = 0
        """Calls begun."""
        self.open = False
        """The last one has not ended."""
        self._tools = frozenset(tools)
        self._choice_id = f"{generation_id}/{choice}"

    def knows(self, name: str) -> bool:
        """The tool may be called."""
        return name in self._tools

    def begin(self, name: str) -> Called:
        """The next call's first piece."""
        digest = hashlib.sha256(f"{self._choice_id}/{self.count}".encode()).hexdigest()
        begun = Called(self.count, f"call_{digest[:24]}", name, "")
        self.count, self.open = self.count + 1, True
        return begun

    def end(self) -> None:
        """The call that was begun is whole."""
        self.open = False


def said(text: str) -> list[Part]:
    """A piece of the answer's text; nothing of an empty one."""
    return [Said(text)] if text else []


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same, neighbours of one kind as one."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and _goes_on(runs[-1][0], part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return tuple(run[0] if len(run) == 1 else _join(run) for run in runs)


def _goes_on(first: Part, part: Part) -> bool:
    if isinstance(first, Called):
        return isinstance(part, Called) and part.index == first.index
    return type(part) is type(first)


def _join(run: Sequence[Part]) -> Part:
    first = run[0]
    if isinstance(first, Called):
        fragments = "".join(part.arguments for part in run if isinstance(part, Called))
        return Called(first.index, first.call_id, first.name, fragments)
    return type(first)("".join(part.text for part in run if not isinstance(part, Called)))
