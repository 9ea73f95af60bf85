"""Thoughts before an answer, between `<think>` and `</think>`."""

from __future__ import annotations

from services.common.generation import Thinking
from services.model.answer_tags import THINK, THINK_END
from services.router.core.parts import Part, Thought
from services.router.core.until import Until


class Thoughts:
    """Divides a text into the thoughts that it begins with, and the answer; blanks on either side
    of a tag are neither's."""

    def __init__(self, thinking: Thinking) -> None:
        self._until = Until(THINK_END, skip_blanks=True) if thinking is Thinking.BEGUN else None
        """None before they begin."""
        self._held = ""
        """What may be the tag that opens them, and blanks before it."""
        self._over = thinking is Thinking.NONE
        self._skips = False

    def feed(self, text: str) -> tuple[list[Part], str]:
        """The thoughts in the next piece of text, and what of it is the answer's."""
        thought: list[str] = []
        for index, character in enumerate(text):
            if self._over:
                return _thought("".join(thought)), self._behind(text[index:])
            if self._until is None:
                if not self._begins(character):
                    self._over, held = True, self._held
                    return [], held + text[index + 1 :]
            else:
                shown, found = self._until.step(character)
                thought.append(shown)
                self._over = self._skips = found
        return _thought("".join(thought)), ""

    def _begins(self, character: str) -> bool:
        self._held += character
        begun = self._held.lstrip()
        if begun == THINK:
            self._until, self._held = Until(THINK_END, skip_blanks=True), ""
        return THINK.startswith(begun)

    def _behind(self, text: str) -> str:
        if self._skips:
            text = text.lstrip()
            self._skips = not text
        return text

    def end(self) -> tuple[list[Part], str]:
        """What was held back, for nothing more comes."""
        if self._over:
            return [], ""
        if self._until is None:
            return [], self._held
        return _thought(self._until.drain()), ""


def _thought(text: str) -> list[Part]:
    return [Thought(text)] if text else []
