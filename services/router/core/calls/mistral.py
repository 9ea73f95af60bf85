"""Calls behind a tag, as a list, `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or a tag each,
`[TOOL_CALLS]name[ARGS]{…}`."""

from __future__ import annotations

import re
from collections.abc import Callable

from services.model.answer_tags import ARGS, CALL_ID, TOOL_CALLS
from services.router.core.calls.json_call import Nesting
from services.router.core.calls.run import JsonCalls
from services.router.core.parts import Called, Numbering, Part, said
from services.router.core.until import Until

_NAMED = re.compile(
    rf"\s*([\w.-]+)\s*(?:{re.escape(CALL_ID)}\s*\w*\s*)?(?:{re.escape(ARGS)})?\s*\{{"
)
_OF_NAMES = re.compile(r"[\w.\-\[\]\s]")


class MistralCalls:
    """Divides a text into what is said and what is called; blanks around calls are neither."""

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._until = Until(TOOL_CALLS)
        self._calls = JsonCalls(numbering)
        self._held = ""
        """From the tag on, while no call has begun behind it."""
        self._before = 0
        """Calls that had been begun before the tag."""
        self._begun: Called | None = None
        self._nesting = Nesting()
        self._state: Callable[[str], list[Part]] = self._text

    def feed(self, text: str) -> list[Part]:
        """The next piece of text."""
        return [part for character in text for part in self._state(character)]

    def _text(self, character: str) -> list[Part]:
        shown, found = self._until.step(character)
        if found:
            self._held, self._before = self._until.drain(), self._numbering.count
            self._state = self._behind_tag
        return said(shown)

    def _behind_tag(self, character: str) -> list[Part]:
        if character in "[{":
            self._calls, self._state = JsonCalls(self._numbering), self._in_list
            return self._in_list(character)
        if character.isspace():
            self._held += character
            return []
        self._state = self._in_name
        return self._in_name(character)

    def _in_list(self, character: str) -> list[Part]:
        parts = self._calls.step(character)
        if self._calls.rest is None:
            return parts
        if self._numbering.count == self._before:
            self._held += self._calls.rest
            return self._none()
        return [*parts, *self._again(self._calls.rest, skip_blanks=True)]

    def _in_name(self, character: str) -> list[Part]:
        self._held += character
        if character == "{":
            named = _NAMED.fullmatch(self._held, self._held.index(TOOL_CALLS) + len(TOOL_CALLS))
            if named is None or not self._numbering.knows(named[1]):
                return self._none()
            self._begun, self._nesting = self._numbering.begin(named[1]), Nesting()
            self._state = self._in_arguments
            return [self._begun, *self._in_arguments(character)]
        return [] if _OF_NAMES.match(character) else self._none()

    def _in_arguments(self, character: str) -> list[Part]:
        assert self._begun is not None
        fragment = Called(self._begun.index, self._begun.call_id, "", character)
        if self._nesting.step(character):
            self._numbering.end()
            return [fragment, *self._again("", skip_blanks=True)]
        return [fragment]

    def _none(self) -> list[Part]:
        return self._again(self._held, skip_blanks=False)

    def _again(self, text: str, *, skip_blanks: bool) -> list[Part]:
        """What has come is text, but that its last character may be the first of a tag."""
        self._until, self._state = Until(TOOL_CALLS, skip_blanks=skip_blanks), self._text
        text = text.lstrip() if skip_blanks else text
        return [*said(text[:-1]), *self.feed(text[-1:])]

    def end(self) -> list[Part]:
        """What was held back, for nothing more comes."""
        if self._state == self._text:
            return said(self._until.drain())
        if self._state == self._in_list:
            none = self._numbering.count == self._before
            return [*said(self._held if none else ""), *self._calls.end()]
        return [] if self._state == self._in_arguments else said(self._held)
