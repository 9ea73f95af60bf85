"""How much longer steps took than they computed, over a recording: what else the machine did.

That is no property of an engine, and no profile can foretell it. It is told as arrivals are: steps
are fitted in seconds on a core, and played as much longer as they were at that time. What they
waited because another pipeline was at work is apart: that goes by who is at work in the replay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

import numpy as np

from simulator.fleet.recording import Recording
from simulator.fleet.work import Work


class Stretch:
    """By pipeline and time; 1 where nothing was recorded."""

    def __init__(self, recording: Recording, work: Work) -> None:
        sums: defaultdict[str, defaultdict[float, list[float]]]
        sums = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))
        for window in recording.windows:
            if window.computed_s > 0:
                told = sums[window.pipeline][round(window.end_s, 1)]
                told[0] += window.stepped_s
                told[1] += window.computed_s
                told[2] = work.beside(window.pipeline, window.begin_s, window.end_s)
        self.shared = _slope([told for found in sums.values() for told in found.values()])
        """By this share steps waited longer for each other pipeline that was at work."""
        self._ends = {name: sorted(found) for name, found in sums.items()}
        self._factors = {
            name: [self._factor(*found[end]) for end in self._ends[name]]
            for name, found in sums.items()
        }

    def _factor(self, stepped_s: float, computed_s: float, beside: float) -> float:
        return max(1.0, stepped_s / computed_s / (1 + self.shared * beside))

    def at(self, pipeline: str, now_s: float) -> float:
        """The factor of the window that it is in, or of the last one before the end."""
        ends = self._ends.get(pipeline)
        if not ends:
            return 1.0
        return self._factors[pipeline][min(bisect_left(ends, now_s), len(ends) - 1)]


def _slope(told: list[list[float]]) -> float:
    """Of the line through stepped over computed seconds by how many others were at work, as a share
    of its beginning; 0 where that does not differ."""
    if not told:
        return 0.0
    stepped_s, computed_s, beside = np.array(told).T
    others = float((computed_s * beside).sum() / computed_s.sum())
    off = beside - others
    spread = float((computed_s * off * off).sum())
    if spread <= 0:
        return 0.0
    slope = float((stepped_s * off).sum()) / spread
    begins = float(stepped_s.sum() / computed_s.sum()) - slope * others
    return max(0.0, slope / begins) if begins > 0 else 0.0
