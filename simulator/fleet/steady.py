"""What a pipeline takes a second, and how long its cycles are, when requests come at a steady rate.

Sources: Little's law for how many it has at a time; step times are the estimator's under a profile.
"""

from __future__ import annotations

from math import floor

from services.placement.estimate.cluster import Workload
from services.placement.estimate.step_times import StepTimes

GRID = 16
"""Loads at which a cycle is computed; between them it is taken to be linear."""
ROUNDS = 64
CLOSE = 1e-3
"""Share by which two rounds may differ."""


class Steady:
    """Of pipelines that are alike; requests are of the workload's mean lengths."""

    def __init__(self, times: StepTimes, workload: Workload) -> None:
        self._times, self._workload = times, workload
        self._context = workload.input_tokens + workload.output_tokens / 2
        most = min(times.profile.max_sequences, int(times.room_positions() / self._context))
        self.capacity_rps = 0.0
        """With a batch that stays full."""
        self.reading = 0.0
        """Share of the work of a request that its prompt is."""
        self._cycles_s = self._sequences = (0.0,) * (GRID + 1)
        if most:
            output = workload.output_tokens
            full_s = self._mean_s(most, most / output)
            self.capacity_rps = most / (output * full_s)
            self.reading = max(0.0, 1.0 - self._mean_s(most, 0.0) / full_s)
            loads = [step / GRID for step in range(GRID + 1)]
            self._cycles_s = tuple(self._settled_s(load, most) for load in loads)
            self._sequences = tuple(
                load * self.capacity_rps * output * cycle_s
                for load, cycle_s in zip(loads, self._cycles_s, strict=True)
            )

    def cycle_s(self, load: float) -> float:
        """Seconds for one token of each, at this share (0 to 1) of the capacity."""
        return self._between(self._cycles_s, load)

    def sequences(self, load: float) -> float:
        """That it has at a time."""
        return self._between(self._sequences, load)

    def load(self, sequences: float) -> float:
        """At which it has so many."""
        for step in range(GRID):
            lower, upper = self._sequences[step : step + 2]
            if sequences < upper:
                return (step + max(0.0, sequences - lower) / (upper - lower)) / GRID
        return 1.0

    def _between(self, values: tuple[float, ...], load: float) -> float:
        place = min(1.0, max(0.0, load)) * GRID
        below = min(GRID - 1, int(place))
        lower, upper = values[below : below + 2]
        return lower + (upper - lower) * (place - below)

    def _mean_s(self, sequences: int, prompts: float) -> float:
        """Of cycles that read so many whole prompts in the mean: of two numbers, each as often as
        that makes it. A prompt costs more than its parts in cycles that wait for memory anyway."""
        fewer = floor(prompts)
        more_often = prompts - fewer
        one, other = (
            self._times.cycle_s(
                sequences, self._context, count * self._workload.input_tokens, count
            )
            for count in (fewer, fewer + 1)
        )
        return one + (other - one) * more_often

    def _settled_s(self, load: float, most: int) -> float:
        """The cycle that is as long as what comes meanwhile makes it."""
        rate, output = load * self.capacity_rps, self._workload.output_tokens
        cycle_s = self._mean_s(1, 0.0)
        for _ in range(ROUNDS):
            prompts = rate * cycle_s
            next_s = self._mean_s(max(1, min(most, round(prompts * output))), prompts)
            if abs(next_s - cycle_s) <= CLOSE * cycle_s:
                return next_s
            cycle_s = next_s
        return cycle_s
