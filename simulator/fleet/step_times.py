"""How long a pipeline's steps take: the estimator's operations under an engine profile.

Source of the operations: services.placement.estimate.roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import PlacedStage
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import GIB, stage_costs
from services.placement.estimate.model import ELEMENT_BYTES
from services.placement.estimate.roofline import total_s
from simulator.fleet.microbatches import Microbatches
from simulator.fleet.profile import EngineProfile

CONTEXT_GRAIN = 32
"""Positions to which a mean context is rounded, so that steps that are alike are computed once."""
ROWS_GRAIN = 32
"""The same of rows of prompts."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one microbatch computes."""

    decoding: float
    """Sequences that get a token each."""
    context: int
    """Mean positions behind them."""
    prompt: int
    """Rows of prompts."""
    prompt_context: int
    """Mean positions behind those."""
    prompts: float
    """Sequences that they belong to."""


class StepTimes:
    """Of the stages of one pipeline."""

    def __init__(self, costs: Costs, stages: Sequence[PlacedStage], profile: EngineProfile) -> None:
        self.profile = profile
        self.stages = len(stages)
        self._parts = stage_costs(costs, stages)
        self._layers = [stage.layers for stage in stages]
        self._known: dict[Rows, tuple[float, ...]] = {}

    def room_positions(self) -> int:
        """Positions of KV cache that the fullest stage has room for. Raises FailedPrecondition
        where its weights do not fit."""
        rooms = []
        last = len(self._parts) - 1
        for index, (part, layers) in enumerate(zip(self._parts, self._layers, strict=True)):
            model = part.model
            heads = model.kv_heads_per_rank(part.tp)
            a_position = heads * 2 * model.head_dim * ELEMENT_BYTES * layers
            free = part.free_bytes(layers, index == 0, index == last)
            if free <= 0:
                raise FailedPrecondition(
                    f"{-free / GIB:.1f} GiB short on stage {index}", field="layers"
                )
            rooms.append(int(free / a_position))
        return min(rooms)

    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float:
        """Seconds in which each of these sequences gets one step."""
        split = Microbatches.of(
            self.stages, self.profile.token_budget, decoding, prompt_rows, prompts
        )
        rows = round(split.prompt_rows)
        rounded = -(-rows // ROWS_GRAIN) * ROWS_GRAIN if rows > ROWS_GRAIN else rows
        mean = int(context) // CONTEXT_GRAIN * CONTEXT_GRAIN + CONTEXT_GRAIN // 2
        seen = max(1, prompt_rows // max(1, prompts) // 2)
        lighter = Rows(split.decoding, mean if decoding else 0, 0, 0, 0.0)
        if not split.reading:
            return split.cycle_s(self._each_s(lighter), self._each_s(lighter))
        reads = Rows(
            split.decoding,
            mean if decoding else 0,
            rounded,
            min(rounded, -(-seen // CONTEXT_GRAIN) * CONTEXT_GRAIN),
            max(1.0, prompts / split.reading),
        )
        return split.cycle_s(self._each_s(lighter), self._each_s(reads))

    def _each_s(self, rows: Rows) -> tuple[float, ...]:
        """Of one microbatch, by stage."""
        if rows not in self._known:
            self._known[rows] = tuple(self._stage_s(index, rows) for index in range(self.stages))
        return self._known[rows]

    def _stage_s(self, index: int, rows: Rows) -> float:
        profile = self.profile
        decoded_s = self._computed_s(index, rows.decoding, rows.context, rows.decoding)
        took_s = profile.decode_scale * decoded_s
        if rows.prompt:
            whole = rows.decoding + rows.prompt
            mean = (rows.decoding * rows.context + rows.prompt * rows.prompt_context) / whole
            sequences = rows.decoding + rows.prompts
            mixed_s = self._computed_s(index, whole, mean, sequences)
            took_s += profile.prefill_scale * max(0.0, mixed_s - decoded_s)
        hop_s = profile.hop_s if index < self.stages - 1 else 0.0
        return took_s + profile.step_overhead_s + hop_s

    def _computed_s(self, index: int, rows: float, mean: float, sequences: float) -> float:
        """The estimator's time of so many rows of so many sequences, each row over `mean`
        positions."""
        if rows <= 0:
            return 0.0
        part = self._parts[index]
        took = total_s(part.device.layer(rows, sequences, mean, mean)) * self._layers[index]
        if index == 0:
            took = took + part.device.embedding(rows).time_s
        if index == self.stages - 1:
            took = took + part.device.lm_head(sequences).time_s
        else:
            rate = self._parts[index + 1].network_bytes_per_s
            took = took + part.hop_s(rows, False, rate)
        return float(took)
