"""A whole model held as one stage, driven as a head would: prompts, then a token a step of each."""

from __future__ import annotations

import time

from torch import Tensor

from services.common.generation import Sampling
from services.engine.backend import BLOCK_SIZE, Batch, SequenceOpen, SequenceStep, StageBackend


class StageRuns:
    """Times of runs on a stage that has begun; each run closes what it opened."""

    def __init__(self, stage: StageBackend, decoded: int) -> None:
        """`decoded`: steps behind the prompts."""
        self._stage = stage
        self._decoded = decoded

    def decode_s(self, ids: Tensor, sampling: Sampling | None = None) -> float:
        """Of one step behind the prompts `[batch, prompt]`; greedy unless told otherwise."""
        batch, prompt = ids.shape
        tokens, tables = self._prefill(ids, self._decoded, sampling)
        began = time.perf_counter()
        for position in range(prompt, prompt + self._decoded):
            steps = [SequenceStep(slot, position, 1, tables[slot], True) for slot in range(batch)]
            tokens = self._sampled(Batch(steps), tokens)
        took_s = time.perf_counter() - began
        self._close(batch)
        return took_s / self._decoded

    def prefill_s(self, ids: Tensor) -> float:
        """Up to the first token."""
        began = time.perf_counter()
        self._prefill(ids, 0)
        took_s = time.perf_counter() - began
        self._close(len(ids))
        return took_s

    def _prefill(
        self, ids: Tensor, room: int, sampling: Sampling | None = None
    ) -> tuple[list[int], list[range]]:
        batch, prompt = ids.shape
        blocks = (prompt + room) // BLOCK_SIZE + 1
        tables = [range(slot * blocks, (slot + 1) * blocks) for slot in range(batch)]
        sampling = sampling or Sampling(max_tokens=room + 1, temperature=0)
        opens = [SequenceOpen(slot, sampling, 0, ids[slot].tolist()) for slot in range(batch)]
        steps = [SequenceStep(slot, 0, prompt, tables[slot], True) for slot in range(batch)]
        return self._sampled(Batch(steps, opens), ids.flatten().tolist()), tables

    def _sampled(self, batch: Batch, ids: list[int]) -> list[int]:
        sampled = self._stage.forward(batch, ids)
        assert isinstance(sampled, tuple)
        return [token.token_id for token in sampled]

    def _close(self, batch: int) -> None:
        self._stage.forward(Batch([], closes=list(range(batch))), [])
