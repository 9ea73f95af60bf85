"""How much longer steps took than they computed, over a recording: what else the machine did.

That is no property of an engine, and no profile can foretell it. It is told as arrivals are: steps
are fitted in seconds on a core, and played as much longer as they were at that time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from simulator.fleet.recording import Recording


class Stretch:
    """By pipeline and time; 1 where nothing was recorded."""

    def __init__(self, recording: Recording) -> None:
        sums: defaultdict[str, defaultdict[float, list[float]]]
        sums = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        for window in recording.windows:
            if window.computed_s > 0:
                both = sums[window.pipeline][round(window.end_s, 1)]
                both[0] += window.stepped_s
                both[1] += window.computed_s
        self._ends = {name: sorted(found) for name, found in sums.items()}
        self._factors = {
            name: [max(1.0, found[end][0] / found[end][1]) for end in self._ends[name]]
            for name, found in sums.items()
        }

    def at(self, pipeline: str, now_s: float) -> float:
        """The factor of the window that it is in, or of the last one before the end."""
        ends = self._ends.get(pipeline)
        if not ends:
            return 1.0
        return self._factors[pipeline][min(bisect_left(ends, now_s), len(ends) - 1)]
