"""One call as a JSON object, `{"name": …, "arguments": {…}}`, character by character.

Its name is told as soon as it is known, and from there on the arguments as they are written, byte
for byte. An object that turns out to be no call of a tool that may be called is text.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from services.router.core.parts import Called, Numbering, Part

_NAME = "name"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = (_NAME, *_ARGUMENTS, "id", "type")
_NO_ARGUMENTS = "{}"


class Nesting:
    """Follows one JSON value to its end; whether it is well-formed is not looked at."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    def step(self, character: str) -> bool:
        """True when a string, a list or an object ends with this character."""
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self.in_string = False
                return self.depth == 0
            return False
        if character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
            return self.depth <= 0
        return False


class JsonCall:
    """Reads one object; stop giving it characters once it is done or has failed."""

    def __init__(self, numbering: Numbering) -> None:
        self.done = False
        self.failed = False
        """It is no call, or goes on as none: the last character is not the call's."""
        self.begun: Called | None = None
        self._numbering = numbering
        self._raw: list[str] = []
        self._state: Callable[[str], list[Part]] = self._open
        self._key = ""
        self._value: list[str] = []
        self._nesting = Nesting()
        self._given = False
        """Arguments were told, or are being told."""
        self._waiting: str | None = None
        """Arguments that came before the name."""

    def step(self, character: str) -> list[Part]:
        """Takes the next character."""
        if self.begun is None:
            self._raw.append(character)
        return self._state(character)

    @property
    def text(self) -> str:
        """What was read and not told: all of it, unless it has begun."""
        return "".join(self._raw)

    def _open(self, character: str) -> list[Part]:
        if character == "{":
            self._state = self._before_key
        elif not character.isspace():
            return self._fail()
        return []

    def _before_key(self, character: str) -> list[Part]:
        if character == '"':
            self._begin_value(character)
            self._state = self._in_key
        elif character == "}":
            return self._close()
        elif not character.isspace():
            return self._fail()
        return []

    def _in_key(self, character: str) -> list[Part]:
        self._value.append(character)
        if self._nesting.step(character):
            key = _string("".join(self._value))
            if self.begun is None and key not in _KEYS:
                return self._fail()
            self._key, self._state = key or "", self._colon
        return []

    def _colon(self, character: str) -> list[Part]:
        if character == ":":
            self._state = self._before_value
        elif not character.isspace():
            return self._fail()
        return []

    def _before_value(self, character: str) -> list[Part]:
        if character.isspace():
            return []
        if character in ",}]:":
            return self._fail()
        self._begin_value(character)
        self._state = self._in_value
        if self.begun is not None and self._key in _ARGUMENTS and character == "{":
            if self._given:
                self._key = ""  # told already; a second one counts for nothing
                return []
            self._given, self._state = True, self._in_arguments
            return [self._fragment(character)]
        return []

    def _in_arguments(self, character: str) -> list[Part]:
        if self._nesting.step(character):
            self._state = self._after_value
        return [self._fragment(character)]

    def _in_value(self, character: str) -> list[Part]:
        plain = not self._nesting.in_string and self._nesting.depth == 0
        if plain and (character in ",}" or character.isspace()):
            return [*self._take("".join(self._value)), *self._after_value(character)]
        self._value.append(character)
        if self._nesting.step(character):
            self._state = self._after_value
            return self._take("".join(self._value))
        return []

    def _after_value(self, character: str) -> list[Part]:
        if self.failed:
            return []
        if character == ",":
            self._state = self._before_key
        elif character == "}":
            return self._close()
        elif character.isspace():
            self._state = self._after_value
        else:
            return self._fail()
        return []

    def _begin_value(self, character: str) -> None:
        self._value, self._nesting = [character], Nesting()
        self._nesting.step(character)

    def _take(self, value: str) -> list[Part]:
        """A value is whole."""
        if self._key == _NAME and self.begun is None:
            name = _string(value)
            if name is None or not self._numbering.knows(name):
                return self._fail()
            self.begun = self._numbering.begin(name)
            self._raw.clear()
            waiting, self._waiting = self._waiting, None
            return [self.begun, *([] if waiting is None else self._give(waiting))]
        if self._key in _ARGUMENTS and not self._given:
            arguments = _arguments(value)
            if arguments is None:
                return self._fail()
            if self.begun is None:
                self._waiting = arguments
                return []
            return self._give(arguments)
        return []

    def _give(self, arguments: str) -> list[Part]:
        self._given = True
        return [self._fragment(arguments)]

    def _fragment(self, text: str) -> Called:
        assert self.begun is not None
        return Called(self.begun.index, self.begun.call_id, "", text)

    def _close(self) -> list[Part]:
        if self.begun is None:
            return self._fail()
        self.done = True
        self._numbering.end()
        return [] if self._given else self._give(_NO_ARGUMENTS)

    def _fail(self) -> list[Part]:
        self.failed = True
        if self.begun is None:
            return []
        self._numbering.end()
        return [] if self._given else self._give(_NO_ARGUMENTS)


def _string(value: str) -> str | None:
    """What a JSON string says; None for what is none."""
    try:
        said = json.loads(value)
    except ValueError:
        return None
    return said if isinstance(said, str) else None


def _arguments(value: str) -> str | None:
    """The JSON of an object: as it is written, or out of a string that holds it; None for what
    cannot be arguments."""
    if value == "null":
        return _NO_ARGUMENTS
    if value.startswith('"'):
        return _string(value)
    return value if value.startswith("{") else None
