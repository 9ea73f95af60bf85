"""What the link between formations carries, as what went over it has shown."""

from __future__ import annotations

UNSEEN_BYTES_PER_S = 1e8
"""While nothing was seen: most of a gigabit."""
LEAST_S = 0.05
"""From less nothing follows: it was calls rather than bytes."""
FORGOTTEN_S = 300.0
"""A link is what it is now."""
_FADES = 0.7
"""What was seen before counts so much beside what is seen now."""


class Link:
    """As a controller knows that of its mesh, or a head that of its formation to others; engines'
    share of it included: blocks go for a part of the time."""

    def __init__(
        self, unseen_bytes_per_s: float = UNSEEN_BYTES_PER_S, forgotten_s: float = FORGOTTEN_S
    ) -> None:
        self._unseen_bytes_per_s, self._forgotten_s = unseen_bytes_per_s, forgotten_s
        self._bytes = self._took_s = 0.0
        self._seen_s: float | None = None

    def carried(self, size_bytes: int, took_s: float, now_s: float) -> None:
        """So many bytes went over it."""
        if self._is_old(now_s):
            self._bytes = self._took_s = 0.0
        self._bytes = _FADES * self._bytes + size_bytes
        self._took_s = _FADES * self._took_s + took_s
        self._seen_s = now_s

    def bytes_per_s(self, now_s: float) -> float:
        """What it gives now, as far as is known."""
        if self._is_old(now_s) or self._took_s < LEAST_S:
            return self._unseen_bytes_per_s
        return self._bytes / self._took_s

    def _is_old(self, now_s: float) -> bool:
        return self._seen_s is None or now_s - self._seen_s >= self._forgotten_s
