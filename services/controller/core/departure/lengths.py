"""How long answers of a model get, as those that have ended show.

An answer that its limit cut off would have been longer, nobody knows by how much: it counts as one
that was seen for so long and not to its end (Kaplan and Meier 1958, the product-limit estimate).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import groupby

KEPT = 512
"""Answers that are remembered: what is asked changes."""
LEAST_SEEN = 8
"""From fewer that were as long nothing follows."""


class AnswerLengths:
    """Of one model; lengths in output tokens."""

    def __init__(self, seen: Iterable[int] = ()) -> None:
        """`seen`: answers that came to an end by themselves."""
        self._seen: deque[tuple[int, bool]] = deque(((one, True) for one in seen), KEPT)
        self._ends: list[int] | None = None
        """Lengths at which answers ended by themselves, ascending."""
        self._survival: list[float] = []
        """Share of answers that is longer than each of them."""
        self._sorted: list[int] = []

    def ended(self, length: int, *, cut: bool) -> None:
        """One more answer is over; `cut` by its limit."""
        self._seen.append((length, not cut))
        self._ends = None

    def ends_within(self, length: int, tokens: float) -> float:
        """The chance that an answer which has so many tokens, and goes on, ends by itself within
        `tokens` more; 0 where too few were as long to tell."""
        ends = self._curve()
        if len(self._sorted) - bisect_right(self._sorted, length) < LEAST_SEEN:
            return 0.0
        return 1.0 - self._longer(ends, length + tokens) / self._longer(ends, length)

    def _longer(self, ends: list[int], length: float) -> float:
        index = bisect_right(ends, length)
        return self._survival[index - 1] if index else 1.0

    def _curve(self) -> list[int]:
        if self._ends is not None:
            return self._ends
        seen = sorted(self._seen)
        self._sorted = [length for length, _ in seen]
        self._ends, self._survival, share, at_risk = [], [], 1.0, len(seen)
        for length, group in groupby(seen, key=lambda one: one[0]):
            of_it = [natural for _, natural in group]
            if any(of_it):
                share *= 1 - sum(of_it) / at_risk
                self._ends.append(length)
                self._survival.append(share)
            at_risk -= len(of_it)
        return self._ends
