"""Step times of stages that were recorded, as a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import FailedPrecondition
from services.placement.estimate.engine import EngineProfile
from services.placement.estimate.microbatches import Microbatches

ROOM = 1 << 20
"""Positions of KV cache: recordings do not tell how many there are, and local ones have more."""


class MeasuredTimes:
    """Of one pipeline, as a batch asks for them."""

    def __init__(self, profile: EngineProfile, kinds: Sequence[str]) -> None:
        """Raises FailedPrecondition where the profile has no such stage."""
        missing = [kind for kind in kinds if kind not in profile.stages]
        if missing or not kinds:
            raise FailedPrecondition(
                f"the profile has no stage {missing[0] if missing else ''}", field="stages"
            )
        self.profile = profile
        self.stages = len(kinds)
        self._costs = [profile.stages[kind] for kind in kinds]

    def room_positions(self) -> int:
        return ROOM

    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float:
        """Seconds in which each of these sequences gets one step."""
        split = Microbatches.of(self.stages, self.profile, decoding, prompt_rows)
        decodes = [c.of(split.decoding, context, 0) for c in self._costs]
        reads = [c.of(split.decoding, context, split.prompt_rows) for c in self._costs]
        return split.cycle_s(decodes, reads) + self.profile.cycle_s
