"""A virtual clock: events in order of time, then of scheduling."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Event = tuple[float, int, Callable[..., object], tuple[Any, ...]]


class Clock:
    """Time that passes only from event to event."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[Event] = []
        self._count = 0

    def after(self, delay_s: float, act: Callable[..., object], *args: Any) -> None:
        """Runs `act(*args)` that much later."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._count, act, args))

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Runs events up to a time or until `done`; True when it was done."""
        while self._events and self._events[0][0] <= until_s:
            if done():
                return True
            self.now_s, _, act, args = heapq.heappop(self._events)
            act(*args)
        self.now_s = max(self.now_s, until_s)
        return done()
