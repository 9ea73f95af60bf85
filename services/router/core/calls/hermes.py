"""Calls between tags, among text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Callable

from services.model.answer_tags import TOOL_CALL, TOOL_CALL_END
from services.router.core.calls.json_call import JsonCall
from services.router.core.parts import Numbering, Part, said
from services.router.core.until import Until


class HermesCalls:
    """Divides a text into what is said and what is called; blanks around calls are neither."""

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._until = Until(TOOL_CALL)
        self._call = JsonCall(numbering)
        self._lead = ""
        """The tag that opened the call, and blanks before it."""
        self._closing = ""
        self._state: Callable[[str], list[Part]] = self._text

    def feed(self, text: str) -> list[Part]:
        """The next piece of text."""
        return [part for character in text for part in self._state(character)]

    def _text(self, character: str) -> list[Part]:
        shown, found = self._until.step(character)
        if found:
            self._lead = self._until.drain()
            self._call, self._state = JsonCall(self._numbering), self._in_call
        return said(shown)

    def _in_call(self, character: str) -> list[Part]:
        parts = self._call.step(character)
        if self._call.done:
            self._closing, self._state = "", self._close
        elif self._call.failed:
            none = self._call.begun is None
            held = self._lead + self._call.text[:-1] if none else ""
            return [*parts, *said(held), *self._again(character, skip_blanks=not none)]
        return parts

    def _close(self, character: str) -> list[Part]:
        self._closing += character
        closing = self._closing.lstrip()
        if closing == TOOL_CALL_END:
            return self._again("", skip_blanks=True)
        if TOOL_CALL_END.startswith(closing):
            return []
        return self._again(closing, skip_blanks=True)

    def _again(self, text: str, *, skip_blanks: bool) -> list[Part]:
        self._until, self._state = Until(TOOL_CALL, skip_blanks=skip_blanks), self._text
        return self.feed(text)

    def end(self) -> list[Part]:
        """What was held back, for nothing more comes."""
        if self._state == self._text:
            return said(self._until.drain())
        if self._state == self._in_call:
            return said(self._lead + self._call.text if self._call.begun is None else "")
        return []
