"""Step times that were fitted to a recording: linear in rows and in the positions behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from services.common.errors import FailedPrecondition
from services.common.yaml_file import Row, read_yaml
from simulator.fleet.microbatches import Microbatches

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


class StageCosts(Row):
    """Seconds of a stage's step: so much each, and for each row or position more."""

    step_s: Seconds
    row_s: Seconds = 0.0
    """Of a sequence that decodes."""
    prompt_row_s: Seconds = 0.0
    """Of a row of a prompt; what decodes in the same step waits for it."""
    context_s: Seconds = 0.0
    """Of a position behind a row that decodes."""

    def of(self, decoding: float, context: float, prompt_rows: float) -> float:
        each = self.row_s + self.context_s * context
        return self.step_s + each * decoding + self.prompt_row_s * prompt_rows


class BatchBounds(Row):
    """Limits of an engine's batch: its settings, which no recording shows."""

    token_budget: int = Field(default=256, ge=1, le=1 << 20)
    """Rows of prompts in one step at most."""
    max_sequences: int = Field(default=64, ge=1, le=1 << 16)
    kv_positions: int = Field(default=1 << 20, ge=1, le=1 << 40)
    """Room of a pipeline's KV cache."""


class MeasuredProfile(BatchBounds):
    """What `shunt simulate fit` writes."""

    version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=128)
    stages: dict[str, StageCosts]
    """By kind of stage."""
    cycle_s: Seconds = 0.0
    """Of a pipeline each cycle, beside its stages' steps: hops, and the head's own work."""
    first_s: Seconds = 0.0
    """Of a request once: door, dispatch and the way back."""


def read_measured(path: Path) -> MeasuredProfile:
    """Raises InvalidArgument, naming file, place and fault, and NotFound."""
    return read_yaml(path, MeasuredProfile)


class MeasuredTimes:
    """Of one pipeline, as a batch asks for them."""

    def __init__(self, profile: MeasuredProfile, kinds: Sequence[str]) -> None:
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
        return self.profile.kv_positions

    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float:
        """Seconds in which each of these sequences gets one step."""
        split = Microbatches.of(
            self.stages, self.profile.token_budget, decoding, prompt_rows, prompts
        )
        decodes = [c.of(split.decoding, context, 0) for c in self._costs]
        reads = [c.of(split.decoding, context, split.prompt_rows) for c in self._costs]
        return split.cycle_s(decodes, reads) + self.profile.cycle_s
