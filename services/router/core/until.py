"""Text up to a tag, character by character: blanks before the tag belong to it."""

from __future__ import annotations

from services.router.core.text import StopString


class Until:
    """Holds back blanks, and what the tag may begin with, until it is clear whose they are."""

    def __init__(self, tag: str, *, skip_blanks: bool = False) -> None:
        """With `skip_blanks`, blanks before the first other character belong to nothing."""
        self.tag = tag
        self._stop = StopString(tag)
        self._skips = skip_blanks
        self._blanks: list[str] = []
        self._pending = ""
        """What the tag may begin with."""

    def step(self, character: str) -> tuple[str, bool]:
        """The text that the next character brings to light, and whether it ends the tag."""
        found = self._stop.step(character)
        pending = self._pending + character
        self._pending = pending[len(pending) - self._stop.matched :]
        return self._pass(pending[: len(pending) - self._stop.matched]), found

    def _pass(self, text: str) -> str:
        shown: list[str] = []
        for character in text:
            if not character.isspace():
                shown += [*self._blanks, character]
                self._blanks.clear()
                self._skips = False
            elif not self._skips:
                self._blanks.append(character)
        return "".join(shown)

    def drain(self) -> str:
        """What is held back, for nothing more comes, or the tag was none after all."""
        held = "".join(self._blanks) + self._pending
        self._blanks.clear()
        self._pending = ""
        return held
