"""Calls as JSON objects in a row: one, several with `;` or `,` between them, or a list of them."""

from __future__ import annotations

from services.router.core.calls.json_call import JsonCall
from services.router.core.parts import Numbering, Part, said


class JsonCalls:
    """Reads from the first `{` or `[` on, up to the first character that is not the calls' own."""

    def __init__(self, numbering: Numbering) -> None:
        self.rest: str | None = None
        """Set where the calls end: what was read of what is none."""
        self._numbering = numbering
        self._call: JsonCall | None = None
        self._done = 0
        self._signs = ""
        """What was read since the last call, without blanks."""
        self._held = ""
        """The same, with them."""
        self._listed = False

    def step(self, character: str) -> list[Part]:
        """Takes the next character."""
        if self._call is None:
            return self._between(character)
        call = self._call
        parts = call.step(character)
        if call.done:
            self._call, self._held, self._signs = None, "", ""
            self._done += 1
        elif call.failed:
            self.rest = self._held + call.text if call.begun is None else character
        return parts

    def _between(self, character: str) -> list[Part]:
        before, self._held = self._held, self._held + character
        if character.isspace():
            return []
        if character == "{" and self._signs in (",;" if self._done else "["):
            self._call, self._held = JsonCall(self._numbering), before
            return self._call.step(character)
        self._signs += character
        if self._signs == "[" and not self._done:
            self._listed = True
        elif self._signs == "]" and self._listed and self._done:
            self.rest = ""
        elif self._signs not in (",", ";") or not self._done:
            self.rest = self._held
        return []

    def end(self) -> list[Part]:
        """What was held back, for nothing more comes; signs behind a call say nothing."""
        if self._call is not None:
            return said(self._held + self._call.text if self._call.begun is None else "")
        return [] if self._done else said(self._held)
