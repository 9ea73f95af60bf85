"""How many rows a prompt takes at least, told before it is tokenised.

Tokenising costs about as much as all else that a refusal takes, and of a crowd nearly all are
refused by less than what their prompts take. So rows are reckoned by the bytes of the text, as few
a byte as any prompt of late had that its head had not computed already.
"""

from __future__ import annotations

from collections import deque

OF_LATE = 32
"""Prompts that count; with fewer of them nothing is reckoned."""
LOOKED_AT = 16
"""One of so many is tokenised whatever was reckoned: prompts may have become others."""


class LeastRows:
    """Of one model's prompts."""

    def __init__(self) -> None:
        self._of_late: deque[float] = deque(maxlen=OF_LATE)
        """Rows a byte."""
        self._asked = 0

    def saw(self, prompt_bytes: int, rows: int) -> None:
        """A prompt was tokenised; of ids there are no bytes, and nothing to learn."""
        if prompt_bytes:
            self._of_late.append(rows / prompt_bytes)

    def of(self, prompt_bytes: int) -> int:
        """Of the next prompt, 1 at least."""
        self._asked += 1
        if len(self._of_late) < OF_LATE or self._asked % LOOKED_AT == 0:
            return 1
        return max(1, int(min(self._of_late) * prompt_bytes))
