"""How long a step may take before its formation counts as stuck."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SLACK = 4.0
"""Steps may take this many times what rows of late took: cores are shared."""
FORGETTING = 0.2
GLANCE_S = 0.2
"""Time counts only as far as it was watched: a process that was itself stopped for a while does
not blame its neighbours for it."""


@dataclass(frozen=True, slots=True)
class _Flight:
    rows: int
    departed_s: float
    departed_watched_s: float


class Pace:
    """Expects of a step what steps of late took a row; stages work steps in order, so the clock
    of each begins when the one before came back."""

    def __init__(self, progress_s: float, row_s: float = 0.02) -> None:
        self._progress_s = progress_s
        self._row_s = row_s
        self._flights: OrderedDict[int, _Flight] = OrderedDict()
        self._last_back_s = float("-inf")
        self._last_back_watched_s = 0.0
        self._watched_s = 0.0
        self._glanced_s: float | None = None

    def departed(self, step: int, rows: int, now_s: float) -> None:
        self._flights[step] = _Flight(rows, now_s, self._watched_s)

    def came_back(self, step: int, now_s: float) -> float:
        """What the step kept the stages from the next one."""
        flight = self._flights.pop(step)
        took_s = now_s - max(flight.departed_s, self._last_back_s)
        self._row_s += FORGETTING * (took_s / max(flight.rows, 1) - self._row_s)
        self._last_back_s, self._last_back_watched_s = now_s, self._watched_s
        return took_s

    def overdue(self, now_s: float) -> bool:
        """The oldest step in flight should have been back; to be asked every GLANCE_S or sooner."""
        if self._glanced_s is not None:
            self._watched_s += min(now_s - self._glanced_s, GLANCE_S)
        self._glanced_s = now_s
        if not self._flights:
            return False
        oldest = next(iter(self._flights.values()))
        waited_s = self._watched_s - max(oldest.departed_watched_s, self._last_back_watched_s)
        return waited_s > self._progress_s + SLACK * oldest.rows * self._row_s
