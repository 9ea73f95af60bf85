"""Calls as Python writes them, `[name(key="value"), other()]`.

Python's arguments are no JSON, so a call is told as a whole, once it is read and understood. The
list is read as far as the calls in it can be made; what cannot is text.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from services.router.core.parts import Called, Numbering, Part, said

MAX_CALL_CHARS = 1 << 16
"""Of one call: what is longer is text."""
_WORDS = {"true": True, "false": False, "null": None}


class PythonicCalls:
    """Reads from `[` on, up to its end, or to the first character of what is no call."""

    def __init__(self, numbering: Numbering) -> None:
        self.rest: str | None = None
        """Set where the calls end: what was read of what is none."""
        self._numbering = numbering
        self._held = ""
        """Read since the last call."""
        self._call = ""
        """Of the call that is being read."""
        self._done = False
        """A call was read, so a comma or the end may follow."""
        self._any = False
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def step(self, character: str) -> list[Part]:
        """Takes the next character."""
        self._held += character
        if len(self._held) > MAX_CALL_CHARS:
            self.rest = self._held
        elif self._depth:
            return self._within(character)
        elif character == "[" and self._held.strip() == "[" and not self._any:
            pass
        elif character == "(" and self._numbering.knows(self._call):
            self._depth, self._call = 1, self._call + character
        elif character in ",]" and self._done:
            self._done = False
            self.rest = "" if character == "]" else None
        elif _names(character) and not self._done:
            self._call += character
        elif not character.isspace() or self._call:
            self.rest = self._held
        return []

    def _within(self, character: str) -> list[Part]:
        self._call += character
        if self._quote:
            closes = character == self._quote and not self._escaped
            self._escaped = character == "\\" and not self._escaped
            self._quote = "" if closes else self._quote
        elif character in "\"'":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
            if not self._depth:
                return self._take()
        return []

    def _take(self) -> list[Part]:
        understood = _understood(self._call)
        if understood is None:
            self.rest = self._held
            return []
        name, arguments = understood
        begun = self._numbering.begin(name)
        self._numbering.end()
        self._held, self._call, self._done, self._any = "", "", True, True
        whole = json.dumps(arguments, ensure_ascii=False)
        return [begun, Called(begun.index, begun.call_id, "", whole)]

    def end(self) -> list[Part]:
        """What was held back, for nothing more comes."""
        return [] if self._done else said(self._held)


def _names(character: str) -> bool:
    return character.isalnum() or character in "_-."


def _understood(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a call; None where it is none, or has a value that JSON has not."""
    name, _, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        found = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        json.dumps(found, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return (name, {str(key): value for key, value in found.items()}) if None not in found else None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in _WORDS:
            raise ValueError("a name is no value")
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        if not all(
            isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys
        ):
            raise ValueError("a key is no text")
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    return ast.literal_eval(node)
