"""A pipeline's cycle: microbatches go through the stages one behind another, and none overtakes.

Each microbatch has its share of what decodes; few sequences make one. Prompts are read by as few
as their rows fill: who makes up a step takes what waits, as far as its token budget goes. Behind a
microbatch that reads, those that only decode wait at every stage: so a cycle takes the way of the
slowest microbatch through all stages, or the time of the slowest stage for all microbatches,
whichever is more.

Source: the bounds of a closed queueing network of single servers in first-come order (Lazowska et
al., Quantitative System Performance, 1984, chapter 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.placement.estimate.engine import BatchBounds


@dataclass(frozen=True, slots=True)
class Microbatches:
    """Of one cycle."""

    count: int
    reading: int
    """Those that read prompts."""
    decoding: float
    """Sequences of each that get a token."""
    prompt_rows: float
    """Of each that reads."""

    @classmethod
    def of(
        cls, stages: int, bounds: BatchBounds, decoding: int, prompt_rows: float
    ) -> Microbatches:
        """As many as there are stages, where they are worth it and there are so many prompts."""
        decode = min(stages, decoding // bounds.min_overlap_sequences)
        reading = min(stages, math.ceil(prompt_rows / bounds.token_budget))
        count = max(1, decode, reading)
        return cls(count, reading, decoding / count, prompt_rows / reading if reading else 0.0)

    def cycle_s(self, decodes_s: Sequence[float], reads_s: Sequence[float]) -> float:
        """Seconds, from those by stage of one that only decodes and of one that reads."""
        slowest = max(
            self.reading * reads + (self.count - self.reading) * decodes
            for decodes, reads in zip(decodes_s, reads_s, strict=True)
        )
        return max(sum(reads_s if self.reading else decodes_s), slowest)
