"""One way to drive stages, whatever computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.common.generation import Sampling
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    Sampled,
    SequenceOpen,
    SequenceStep,
    StageBackend,
)


@dataclass
class Pipeline:
    """Stages in a row, and block tables for slots."""

    stages: Sequence[StageBackend]
    blocks_per_slot: int = 8

    def table(self, slot: int) -> list[int]:
        """A slot's blocks; scattered, so that order matters."""
        first = slot * self.blocks_per_slot
        return [first + (i * 3 + 1) % self.blocks_per_slot for i in range(self.blocks_per_slot)]

    def open(
        self, slot: int, prompt: Sequence[int], outputs: Sequence[int] = (), **sampling: Any
    ) -> SequenceOpen:
        """Greedy unless told otherwise."""
        options = {"max_tokens": 64, "temperature": 0.0, **sampling}
        choice = options.pop("choice", 0)
        return SequenceOpen(slot, Sampling(**options), choice, tuple(prompt), tuple(outputs))

    def step(self, slot: int, start: int, count: int, sample: bool = True) -> SequenceStep:
        """Rows of a slot, with as many blocks as they need."""
        needed = (start + count + BLOCK_SIZE - 1) // BLOCK_SIZE
        return SequenceStep(slot, start, count, self.table(slot)[:needed], sample)

    def run(self, batch: Batch, token_ids: Sequence[int]) -> tuple[Sampled, ...]:
        """One batch through all stages."""
        rows: Sequence[int] | Hidden | tuple[Sampled, ...] = token_ids
        for stage in self.stages:
            rows = stage.forward(batch, rows)  # type: ignore[arg-type]
        assert isinstance(rows, tuple)
        return rows

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        held: Sequence[int] = (),
        slot: int = 0,
        chunks: Sequence[int] = (),
        **sampling: Any,
    ) -> list[int]:
        """`held` and what follows, up to `count` output ids; prompt and held ids in chunks."""
        known, outputs = [*prompt, *held], list(held)
        sizes = [*chunks, len(known) - sum(chunks)]
        opens, start = [self.open(slot, prompt, held, **sampling)], 0
        sampled: tuple[Sampled, ...] = ()
        for size in sizes:
            end = start + size
            batch = Batch([self.step(slot, start, size, end == len(known))], opens)
            sampled = self.run(batch, known[start:end])
            opens, start = [], end
        while True:
            assert sampled[0].position == len(outputs)
            outputs.append(sampled[0].token_id)
            if len(outputs) >= count:
                break
            batch = Batch([self.step(slot, len(prompt) + len(outputs) - 1, 1)])
            sampled = self.run(batch, outputs[-1:])
        self.run(Batch([], closes=[slot]), [])
        return outputs
