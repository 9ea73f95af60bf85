"""A JSON object from a client, with everything refused that parsers disagree about."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from services.common.errors import InvalidArgument

MAX_DEPTH = 64
MAX_KEYS = 20_000
MAX_BRACKETS = 1 << 18
"""Arrays and objects, counted before parsing; brackets within strings count too."""
MAX_NUMBER_CHARS = 64
_SHOWN_CHARS = 40


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidArgument for what is no JSON object in UTF-8, for duplicate keys, numbers that
    are not finite or of unreasonable length, NUL, lone surrogates, and too much of anything."""
    keys = 0

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal keys
        keys += len(pairs)
        if keys > MAX_KEYS:
            raise InvalidArgument(f"over {MAX_KEYS} keys", field="body")
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InvalidArgument(
                f"the key {shown(twice)} occurs twice in one object", field="body"
            )
        return found

    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise InvalidArgument(f"over {MAX_BRACKETS} opening brackets", field="body")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=collect,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"the body is not JSON: {error.msg} at character {error.pos}", field="body"
        ) from None
    except UnicodeDecodeError:
        raise InvalidArgument("the body is not UTF-8", field="body") from None
    except RecursionError:
        raise InvalidArgument(f"the body is nested over {MAX_DEPTH} deep", field="body") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"the body must be an object, not {shown(value)}", field="body")
    _check(value)
    return value


def _constant(text: str) -> Any:
    raise InvalidArgument(f"{text} is not JSON", field="body")


def _float(text: str) -> float:
    value = float(text) if len(text) <= MAX_NUMBER_CHARS else math.inf
    if not math.isfinite(value):
        raise _too_long(text)
    return value


def _int(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise _too_long(text)
    return int(text)


def _too_long(text: str) -> InvalidArgument:
    begun = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return InvalidArgument(f"the number {begun} is too large or too long", field="body")


def _check(root: dict[str, Any]) -> None:
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                _check_texts(value)
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                _check_texts((value,))
        if not below:
            return
        level = below
    raise InvalidArgument(f"the body is nested over {MAX_DEPTH} deep", field="body")


def _check_texts(texts: Iterable[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise InvalidArgument("the body holds a NUL character", field="body")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("the body holds a lone surrogate", field="body") from None


def kind_of(value: Any) -> str:
    """A value's type in JSON's words, with integers apart from other numbers."""
    return _KINDS[type(value)]


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def shown(value: Any, *, whole: bool = False) -> str:
    """A value as an error may echo it: of an array or object only that it is one, unless it is one
    of ours."""
    if isinstance(value, (list, dict)) and not whole:
        return f"an {kind_of(value)}" if value else f"an empty {kind_of(value)}"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
