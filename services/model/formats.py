"""`'…' % values` and `'…'.format(values)` for templates: as Python does them, within bounds, and
with the origin of every character kept where it can be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedFormatter

from services.model.bounds import MAX_CHARS, MAX_PADDING, printed_chars
from services.model.written import Written, origin_of, written

_PERCENT = re.compile(
    r"%(?:\((?P<key>[^)]*)\))?(?P<flags>[-#0 +]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"[hlL]?(?P<kind>.)",
    re.DOTALL,
)
_NUMBER = re.compile(r"\d+")


def percent(text: str, values: Any) -> str:
    """`text % values`. Raises SecurityError beyond the bounds, and what Python raises."""
    found = list(_PERCENT.finditer(text))
    if any("*" in (spec["width"] or "") + (spec["precision"] or "") for spec in found):
        raise SecurityError("a width from outside is not for templates")
    widest = max((_widest(spec[0]) for spec in found), default=0)
    _check(len(text) + len(found) * (printed_chars(values) + widest))
    plain = str.__mod__(text, values)
    if not _all_written(text):
        return plain
    position, part, parts = 0, 0, []
    positional = values if isinstance(values, tuple) else (values,)
    for spec in found:
        parts.append(text[position : spec.start()])
        position = spec.end()
        if spec["kind"] == "%":
            parts.append(written("%"))
            continue
        value = values[spec["key"]] if spec["key"] is not None else positional[part]
        part += spec["key"] is None
        bare = spec["kind"] == "s" and not spec["flags"] + (spec["width"] or "")
        whole = bare and spec["precision"] is None and isinstance(value, str)
        keyless = "%" + spec[0].partition(")")[2] if spec["key"] is not None else spec[0]
        parts.append(value if whole else str.__mod__(keyless, (value,)))
    made = written("").join([*parts, text[position:]])
    return made if made == plain else plain


def braces(
    environment: Environment, text: str, values: Sequence[Any], named: Mapping[str, Any]
) -> str:
    """`text.format(*values, **named)`. Raises SecurityError beyond the bounds, and what Python
    raises."""
    formatter = SandboxedFormatter(environment)
    own = _all_written(text)
    parts: list[str] = []
    numbered, chars = 0, 0
    for literal, field, form, conversion in formatter.parse(str.__str__(text)):
        parts.append(written(literal) if own else literal)
        chars += len(literal)
        if field is None:
            continue
        if not field or field[0] in ".[":
            field, numbered = f"{numbered}{field}", numbered + 1
        if form and "{" in form:
            raise SecurityError("a format within a format is not for templates")
        value, _ = formatter.get_field(field, values, named)
        chars += printed_chars(value) + _widest(form or "")
        _check(chars)
        value = formatter.convert_field(value, conversion)
        whole = isinstance(value, str) and not form
        parts.append(value if whole else formatter.format_field(value, form or ""))
    return written("").join(parts)


def _widest(spec: str) -> int:
    widest = max((int(number[:9]) for number in _NUMBER.findall(spec)), default=0)
    if widest > MAX_PADDING:
        raise SecurityError("a padding is too wide")
    return widest


def _check(chars: int) -> None:
    if chars > MAX_CHARS:
        raise SecurityError("a text is too long")


def _all_written(text: str) -> bool:
    return isinstance(text, Written) and 0 not in origin_of(text)
