"""The clock of a search, for edges: a limit in seconds, and cancellation from another thread."""

from __future__ import annotations

import threading
import time


class Stopwatch:
    """A `Budget` on the monotonic clock."""

    def __init__(self, limit_s: float) -> None:
        self._begin_s = time.monotonic()
        self._end_s = self._begin_s + limit_s
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def expired(self) -> bool:
        return self._cancelled.is_set() or time.monotonic() >= self._end_s

    def remaining_s(self) -> float:
        return 0.0 if self._cancelled.is_set() else max(0.0, self._end_s - time.monotonic())

    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin_s
