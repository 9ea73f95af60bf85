"""What a head has given up of what it had asked to be done to blocks, by number.

Numbers rise. Of those that were given up the latest are remembered; whatever is older counts as
given up, too, so that what is remembered has an end. A call that was refused for that has its
blocks computed instead.
"""

from __future__ import annotations

KEPT = 1024
"""What a head asks for is over long before it has given up so many others."""


class GivenUp:
    """Of one formation; one thread adds, any may look."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._numbers: set[int] = set()
        self._all_to = -1
        """Up to this one all are."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, number: int) -> bool:
        return number <= self._all_to or number in self._numbers

    def add(self, number: int) -> None:
        """Nothing is to be done for this one any more."""
        if number in self:
            return
        self._numbers.add(number)
        if len(self._numbers) > self._kept:
            self._all_to = min(self._numbers)
            self._numbers.discard(self._all_to)
