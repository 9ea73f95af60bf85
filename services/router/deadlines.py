"""When a client wants its first token, at the latest."""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

HEADER = "x-shunt-deadline-ms"
MAX_MS = 3_600_000
PATTERN = "^([1-9][0-9]{0,5}|[12][0-9]{6}|3[0-5][0-9]{5}|3600000)?$"
"""Of the header's text; one that is empty is as good as none."""


def deadline_from(text: str) -> float | None:
    """Seconds from now, of a header's text in milliseconds; None where there is none. Raises
    InvalidArgument."""
    text = text.strip()
    if not text:
        return None
    # Of a number with more digits nothing is converted.
    milliseconds = int(text) if re.fullmatch(r"[1-9][0-9]{0,6}", text, re.ASCII) else 0
    return deadline_of(milliseconds, HEADER)


def deadline_of(milliseconds: int, field: str) -> float:
    """In seconds. Raises InvalidArgument and names the field."""
    if not 1 <= milliseconds <= MAX_MS:
        raise InvalidArgument(
            f"{field} is a whole number of milliseconds from 1 to {MAX_MS}", field=field
        )
    return milliseconds / 1000
