"""How many lines of batches one router has under way: what live requests leave, found by trying.

The window widens by one for as many answers as it is wide, where it was full, and is halved when
somebody is refused or a live request waits for its first token (Chiu and Jain, 1989: additive
increase, multiplicative decrease).
"""

from __future__ import annotations


class Window:
    """Lines that may be under way."""

    def __init__(self, first: int, most: int, settle_s: float) -> None:
        """After it was halved it is not halved again for `settle_s`: what was begun before says
        nothing of what it is now."""
        self._wide = float(min(first, most))
        self._most = most
        self._settle_s = settle_s
        self._settled_at_s = 0.0
        self._begins_at_s = 0.0

    @property
    def size(self) -> int:
        """Lines at once."""
        return int(self._wide)

    def free(self, under_way: int, now_s: float) -> bool:
        """One more may begin."""
        return under_way < self.size and now_s >= self._begins_at_s

    def answered(self, under_way: int) -> None:
        """A line was answered, of so many."""
        if under_way >= self.size:
            self._wide = min(float(self._most), self._wide + 1 / self._wide)

    def refused(self, now_s: float, again_s: float) -> None:
        """Somebody said that it is too much; nothing begins for `again_s`."""
        self._begins_at_s = max(self._begins_at_s, now_s + again_s)
        self._narrow(now_s)

    def live_waits(self, now_s: float) -> None:
        """A live request waits for its first token."""
        self._begins_at_s = max(self._begins_at_s, now_s + self._settle_s)
        self._narrow(now_s)

    def _narrow(self, now_s: float) -> None:
        if now_s >= self._settled_at_s:
            self._settled_at_s = now_s + self._settle_s
            self._wide = max(1.0, self._wide / 2)
