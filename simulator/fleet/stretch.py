"""How much longer steps took than they computed, over a recording: what else the machine did.

That is no property of an engine, and no profile can foretell it. It is told as arrivals are: steps
are fitted in seconds on a core, and played as much longer as they were at that time. What they
waited because another pipeline was at work is apart: that goes by who is at work in the replay. So
is what they waited because they read a prompt: who computes for long is interrupted, where a step
that only decodes is over before anybody else has its turn (`EngineProfile.reading`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

import numpy as np

from services.placement.estimate.engine import EngineProfile
from simulator.fleet.recording import Recording
from simulator.fleet.robust import line
from simulator.fleet.work import Work


class Stretch:
    """By pipeline and time; 1 where nothing was recorded."""

    def __init__(self, recording: Recording, profile: EngineProfile) -> None:
        """The profile tells what of a step is of prompts, and how much longer that takes."""
        work = Work(recording)
        sums: defaultdict[str, defaultdict[float, np.ndarray]]
        sums = defaultdict(lambda: defaultdict(lambda: np.zeros(3)))
        for window in recording.windows:
            stages = recording.header.pipelines.get(window.pipeline, ())
            if window.computed_s <= 0 or window.stage >= len(stages):
                continue
            beside = work.beside(window.pipeline, window.begin_s, window.end_s)
            costs = profile.stages.get(stages[window.stage].kind)
            row_s = costs.prompt_row_s * (1 + profile.shared * beside) if costs else 0.0
            reads_s = min(window.computed_s, row_s * window.prompt_rows)
            told = sums[window.pipeline][round(window.end_s, 1)]
            told[0] += window.stepped_s
            told[1] += window.computed_s + (profile.reading - 1) * reads_s
            told[2] = beside
        found = [told for by_end in sums.values() for told in by_end.values()]
        self.shared = _slope(np.array(found)) if found else 0.0
        """By this share steps waited longer for each other pipeline that was at work."""
        self._ends = {name: sorted(by_end) for name, by_end in sums.items()}
        self._factors = {
            name: [self._factor(*map(float, sums[name][end])) for end in ends]
            for name, ends in self._ends.items()
        }

    def _factor(self, stepped_s: float, quiet_s: float, beside: float) -> float:
        return max(1.0, stepped_s / quiet_s / (1 + self.shared * beside))

    def at(self, pipeline: str, now_s: float) -> float:
        """The factor of the window that it is in, or of the last one before the end."""
        ends = self._ends.get(pipeline)
        if not ends:
            return 1.0
        return self._factors[pipeline][min(bisect_left(ends, now_s), len(ends) - 1)]


def _slope(told: np.ndarray) -> float:
    """Of the line through what steps took over what they would have by how many others were at
    work, as a share of its beginning; 0 where that does not differ."""
    stepped_s, quiet_s, beside = told.T
    columns = np.stack([quiet_s, quiet_s * beside], axis=1)
    begins, more = (float(cost) for cost in line(columns, stepped_s)[0])
    return more / begins if begins > 0 else 0.0
