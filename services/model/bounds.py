"""What one rendering of a template may build, and for how long it may run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

MAX_CHARS = 16 << 20
"""Characters of one text, and of one value when it is printed."""
MAX_BUILT_CHARS = 256 << 20
"""Characters of all the texts that a rendering builds."""
MAX_STEPS = 200_000
MAX_ITEMS = 200_000
"""Entries of one list, with the lists in it."""
MAX_PADDING = 1 << 16
MAX_INDENT = 64
MAX_SLOW_CHARS = 64 << 10
"""Characters of a text that a filter takes whose work grows faster than the text."""
MAX_NUMBER_BITS = 4096


class RenderBudget:
    """Loop turns, calls, characters and time of one rendering."""

    def __init__(self, clock: Callable[[], float], limit_s: float) -> None:
        self._clock = clock
        self._deadline_s = clock() + limit_s
        self._steps = MAX_STEPS
        self._chars = MAX_BUILT_CHARS

    def spend(self, steps: int) -> None:
        """Raises SecurityError when steps or time have run out."""
        self._steps -= steps
        if self._steps < 0 or self._clock() > self._deadline_s:
            raise SecurityError("the template runs for too long")

    def build(self, chars: int) -> None:
        """Raises SecurityError for a text that is too long, or one too many."""
        self._chars -= chars
        if chars > MAX_CHARS or self._chars < 0:
            raise SecurityError("a text is too long")


def printed_chars(value: Any) -> int:
    """About how many characters a value has when it is printed.

    Raises SecurityError beyond MAX_CHARS or MAX_ITEMS: lists may hold one another many times.
    """
    chars, items, left = 0, 0, [value]
    while left:
        entry = left.pop()
        items += 1
        if isinstance(entry, str):
            chars += len(entry)
        elif isinstance(entry, int):
            chars += entry.bit_length() // 3 + 1
        elif isinstance(entry, Mapping):
            left.extend(entry.keys())
            left.extend(entry.values())
        elif isinstance(entry, (list, tuple, set, frozenset)):
            left.extend(entry)
        if chars > MAX_CHARS or items + len(left) > MAX_ITEMS:
            raise SecurityError("a value is too large")
    return chars + 8 * items
