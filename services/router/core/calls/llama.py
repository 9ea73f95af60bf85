"""Calls that a text begins with, as JSON or as Python writes them, or that a tag of their own opens
in it."""

from __future__ import annotations

from collections.abc import Callable

from services.model.answer_tags import PYTHON_TAG
from services.router.core.calls.pythonic import PythonicCalls
from services.router.core.calls.run import JsonCalls
from services.router.core.parts import Numbering, Part, said
from services.router.core.until import Until


class LlamaCalls:
    """Divides a text into calls and what is said behind them, or is said instead."""

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._held = ""
        self._lead = ""
        """What came before the calls."""
        self._before = 0
        """Calls that had been begun by then."""
        self._calls: JsonCalls | PythonicCalls | None = None
        self._until = Until(PYTHON_TAG)
        self._state: Callable[[str], list[Part]] = self._start

    def feed(self, text: str) -> list[Part]:
        """The next piece of text."""
        return [part for character in text for part in self._state(character)]

    def _start(self, character: str) -> list[Part]:
        """Nothing but blanks and the tag has come."""
        self._held += character
        begun = self._held.lstrip().removeprefix(PYTHON_TAG).lstrip()
        first = begun.removeprefix("[").lstrip()[:1]
        if not first or PYTHON_TAG.startswith(begun):
            return []
        if first == "{":
            self._calls = JsonCalls(self._numbering)
        elif begun[0] == "[" and (first.isalpha() or first == "_"):
            self._calls = PythonicCalls(self._numbering)
        else:
            return self._again(self._held)
        self._lead, self._before = self._held[: -len(begun)], self._numbering.count
        self._state = self._in_calls
        return self.feed(begun)

    def _in_calls(self, character: str) -> list[Part]:
        assert self._calls is not None
        parts = self._calls.step(character)
        if self._calls.rest is None:
            return parts
        if self._numbering.count == self._before:
            return self._again(self._lead + self._calls.rest)
        return [*parts, *self._again(self._calls.rest, skip_blanks=True)]

    def _again(self, text: str, *, skip_blanks: bool = False) -> list[Part]:
        """What has come is text, but that its last character may be the first of a tag."""
        self._until, self._state = Until(PYTHON_TAG, skip_blanks=skip_blanks), self._text
        text = text.lstrip() if skip_blanks else text
        return [*said(text[:-1]), *self.feed(text[-1:])]

    def _text(self, character: str) -> list[Part]:
        shown, found = self._until.step(character)
        if found:
            self._held, self._state = self._until.drain(), self._start
        return said(shown)

    def end(self) -> list[Part]:
        """What was held back, for nothing more comes."""
        if self._state == self._text:
            return said(self._until.drain())
        if self._calls is None or self._state == self._start:
            return said(self._held)
        none = self._numbering.count == self._before
        return [*said(self._lead if none else ""), *self._calls.end()]
