"""How long a pipeline's steps take: the estimator's operations under an engine profile.

Source of the operations: services.placement.estimate.roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import FailedPrecondition
from services.placement.estimate.costs import StageCost
from services.placement.estimate.engine import EngineProfile
from services.placement.estimate.microbatches import Microbatches
from services.placement.estimate.model import ELEMENT_BYTES
from services.placement.estimate.roofline import total_s

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

    def __init__(
        self, parts: Sequence[StageCost], layers: Sequence[int], profile: EngineProfile
    ) -> None:
        """`layers` of each part."""
        self.profile = profile
        self.stages = len(parts)
        self._parts, self._layers = parts, layers
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
                    f"{-free / 2**30:.1f} GiB short on stage {index}", field="layers"
                )
            rooms.append(int(free / a_position))
        return min(rooms)

    def kv_positions_per_s(self) -> float:
        """Positions whose KV cache goes to another pipeline, or comes from one: each stage sends
        its own layers."""
        return min(
            part.network_bytes_per_s / (part.model.kv_bytes_per_token_layer * layers)
            for part, layers in zip(self._parts, self._layers, strict=True)
        )

    def cycle_s(self, decoding: int, context: float, prompt_rows: float, prompts: float) -> float:
        """Seconds in which each of these sequences gets one step."""
        split = Microbatches.of(self.stages, self.profile, decoding, prompt_rows)
        mean = int(context) // CONTEXT_GRAIN * CONTEXT_GRAIN + CONTEXT_GRAIN // 2
        decodes = Rows(split.decoding, mean if decoding else 0, 0, 0, 0.0)
        reads = decodes
        if split.reading:
            rows = round(split.prompt_rows)
            seen = max(1, int(prompt_rows / max(1.0, prompts)) // 2)
            rounded = -(-rows // ROWS_GRAIN) * ROWS_GRAIN if rows > ROWS_GRAIN else rows
            reads = Rows(
                split.decoding,
                decodes.context,
                rounded,
                min(rounded, -(-seen // CONTEXT_GRAIN) * CONTEXT_GRAIN),
                max(1.0, prompts / split.reading),
            )
        return split.cycle_s(self._each_s(decodes), self._each_s(reads)) + self.profile.cycle_s

    def _each_s(self, rows: Rows) -> tuple[float, ...]:
        """Of one microbatch, by stage."""
        if rows not in self._known:
            self._known[rows] = tuple(self._stage_s(index, rows) for index in range(self.stages))
        return self._known[rows]

    def _stage_s(self, index: int, rows: Rows) -> float:
        part, whole = self._parts[index], rows.decoding + rows.prompt
        if whole <= 0:
            return 0.0
        sequences = rows.decoding + rows.prompts
        decoded_s = self._layers_s(index, rows.decoding, rows.decoding, rows.context)
        took_s = part.decode_scale * decoded_s
        if rows.prompt:
            mean = (rows.decoding * rows.context + rows.prompt * rows.prompt_context) / whole
            mixed_s = self._layers_s(index, whole, sequences, mean)
            took_s += part.prefill_scale * max(0.0, mixed_s - decoded_s)
        return took_s + self._ends_s(index, whole, sequences) + part.step_overhead_s

    def _layers_s(self, index: int, rows: float, sequences: float, mean: float) -> float:
        """The estimator's time of so many rows, each over `mean` positions."""
        if rows <= 0:
            return 0.0
        one = total_s(self._parts[index].device.layer(rows, sequences, mean, mean))
        return float(one) * self._layers[index]

    def _ends_s(self, index: int, rows: float, sequences: float) -> float:
        """Embedding, lm_head, and the hop."""
        part, took_s = self._parts[index], 0.0
        if index == 0:
            took_s += float(part.device.embedding(rows).time_s)
        if index == self.stages - 1:
            return took_s + float(part.device.lm_head(sequences).time_s)
        rate = self._parts[index + 1].network_bytes_per_s
        return took_s + float(part.hop_s(rows, False, rate))
