"""A stage: what the engine's runtime drives, over some arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.common.errors import FailedPrecondition, InvalidArgument
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    ResidentLayer,
    ResidentTensor,
    Sampled,
    SequenceStep,
    StageFacts,
)
from services.engine.native import sampler
from services.engine.native.arithmetic import Arithmetic, PackedWeights, Packing, Span
from services.engine.native.exactness import is_exact
from services.model.config import ModelConfig

ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SELF_TEST_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """A packed layer; the first one with the embedding, the last one with final norm and head."""

    packed: PackedWeights
    embedding: Tensor | None  # [vocab, hidden]
    head: PackedWeights | None
    tensors: tuple[ResidentTensor, ...]

    @property
    def resident(self) -> ResidentLayer:
        head_bytes = 0 if self.head is None else self.head.packed_bytes
        return ResidentLayer(self.tensors, self.packed.packed_bytes + head_bytes)


class NativeStage:
    """Implements StageBackend: checks a batch, runs it, samples what is asked for."""

    def __init__(
        self, facts: StageFacts, packing: Packing[Any, Any], layers: Mapping[int, NativeLayer]
    ) -> None:
        self._facts = facts
        self._packing = packing
        self._layers = dict(layers)
        self._arithmetic: Arithmetic | None = None
        self._kv_blocks = 0
        self._slots: dict[int, sampler.SlotState] = {}

    @property
    def facts(self) -> StageFacts:
        return self._facts

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        return {number: layer.resident for number, layer in self._layers.items()}

    def begin(self, kv_blocks: int) -> None:
        self.end()
        if not self._layers:
            raise FailedPrecondition("the stage is closed")
        layers = [layer.packed for layer in self._layers.values()]
        head = self._layers[self._facts.layers.stop - 1].head
        self._arithmetic = self._packing.arithmetic(layers, head, kv_blocks)
        self._kv_blocks = kv_blocks

    def end(self) -> None:
        self._slots.clear()
        if self._arithmetic is not None:
            self._arithmetic.close()
        self._arithmetic, self._kv_blocks = None, 0

    def close(self) -> None:
        self.end()
        self._layers.clear()

    def is_exact(self, config: ModelConfig, dtype: torch.dtype) -> bool:
        """Asks the self-test, over a cache of its own."""
        self.begin(SELF_TEST_BLOCKS)
        try:
            assert self._arithmetic is not None
            return is_exact(
                self._arithmetic, config, SELF_TEST_BLOCKS, dtype, last=self._facts.last
            )
        finally:
            self.end()

    def declare(self, numerics_class: str, *, exact: bool) -> None:
        """Set what the self-test found."""
        self._facts = replace(self._facts, numerics_class=numerics_class, exact=exact)

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        if self._arithmetic is None:
            raise FailedPrecondition("the stage has no cache: it is closed, or in no formation")
        self._check(batch)
        hidden = self._unpack(rows) if isinstance(rows, Hidden) else self._embed(rows)
        if len(hidden) != batch.rows:
            raise InvalidArgument(f"{len(hidden)} rows for {batch.rows} positions", field="rows")
        for slot in batch.closes:
            self._slots.pop(slot, None)
        for opened in batch.opens:
            self._slots[opened.slot] = sampler.open_slot(
                opened.sampling, opened.choice, opened.prompt_ids, opened.output_ids
            )
        spans, first = [], 0
        for step in batch.steps:
            spans.append(Span(first, step.count, step.start, step.block_table))
            first += step.count
        if spans:
            hidden = self._arithmetic.forward(hidden, spans)
        if not self._facts.last:
            return self._pack(hidden)
        return self._sample(batch.steps, spans, hidden)

    def _sample(
        self, steps: Sequence[SequenceStep], spans: Sequence[Span], hidden: Tensor
    ) -> tuple[Sampled, ...]:
        assert self._arithmetic is not None
        asked = [(step, span) for step, span in zip(steps, spans, strict=True) if step.sample]
        if not asked:
            return ()
        last_rows = [span.first + span.count - 1 for _, span in asked]
        if len(last_rows) < len(hidden):
            hidden = hidden[last_rows]
        logits = self._arithmetic.logits(hidden).numpy()
        sampled = []
        for (step, _), row in zip(asked, logits, strict=True):
            state = self._slots[step.slot]
            position = state.length
            token_id, logprob = sampler.sample(row, state)
            sampled.append(Sampled(step.slot, position, token_id, logprob))
        return tuple(sampled)

    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        embedding = self._layers[self._facts.layers.start].embedding
        if embedding is None:
            raise InvalidArgument("only the first stage takes token ids", field="rows")
        ids = np.asarray(token_ids, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._facts.vocab_size:
            raise InvalidArgument(
                f"token ids must be below {self._facts.vocab_size}", field="token_ids"
            )
        return embedding.index_select(0, torch.from_numpy(ids))  # a row at a time

    def _unpack(self, hidden: Hidden) -> Tensor:
        facts = self._facts
        if facts.first:
            raise InvalidArgument("the first stage takes token ids", field="hidden")
        if hidden.dtype != facts.hidden_dtype:
            raise InvalidArgument(f"must be {facts.hidden_dtype}", field="hidden.dtype")
        expected = hidden.rows * facts.hidden_size * ELEMENT_BYTES[hidden.dtype]
        if len(hidden.data) != expected:
            raise InvalidArgument(
                f"{len(hidden.data)} bytes, expected {expected}", field="hidden.data"
            )
        # A copy: the layers write in place.
        received = torch.empty((hidden.rows, facts.hidden_size), dtype=DTYPES[hidden.dtype])
        received.view(torch.uint8).view(-1).numpy()[:] = np.frombuffer(hidden.data, dtype=np.uint8)
        return received

    def _pack(self, hidden: Tensor) -> Hidden:
        data = hidden.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return Hidden(self._facts.hidden_dtype, len(hidden), data)

    def _check(self, batch: Batch) -> None:
        facts = self._facts
        open_slots = self._slots.keys() - set(batch.closes)
        for opened in batch.opens:
            if opened.slot in open_slots:
                raise InvalidArgument(f"slot {opened.slot} is taken", field="opens.slot")
            open_slots.add(opened.slot)
            _check_ids(opened.sampling.logit_bias.keys(), facts.vocab_size, "logit_bias")
            _check_ids(opened.sampling.stop_token_ids, facts.vocab_size, "stop_token_ids")
            _check_ids(opened.sampling.eos_token_ids, facts.vocab_size, "eos_token_ids")
            _check_ids(opened.prompt_ids, facts.vocab_size, "prompt_ids")
            _check_ids(opened.output_ids, facts.vocab_size, "output_ids")
        lengths = {
            opened.slot: (len(opened.prompt_ids), len(opened.output_ids)) for opened in batch.opens
        }
        for step in batch.steps:
            if step.slot not in open_slots:
                raise InvalidArgument(f"slot {step.slot} is not open", field="steps.slot")
            open_slots.remove(step.slot)  # at most one step each
            self._check_rows(step)
            if step.sample and facts.last:  # the others see no outputs
                prompt, output = lengths.get(step.slot) or self._length(step.slot)
                if step.start + step.count != prompt + output:
                    raise InvalidArgument(
                        f"slot {step.slot} samples behind position {step.start + step.count}, "
                        f"holds {prompt} + {output} ids",
                        field="steps.sample",
                    )

    def _length(self, slot: int) -> tuple[int, int]:
        state = self._slots[slot]
        return state.prompt_length, state.length

    def _check_rows(self, step: SequenceStep) -> None:
        end = step.start + step.count
        most = min(self._facts.context_length, self._kv_blocks * BLOCK_SIZE)
        if step.start < 0 or step.count < 1 or end > most:
            raise InvalidArgument(
                f"positions {step.start} to {end} must be 1 or more, up to {most}",
                field="steps.start",
            )
        if len(step.block_table) * BLOCK_SIZE < end:
            raise InvalidArgument(
                f"{len(step.block_table)} blocks do not cover {end} positions",
                field="steps.block_table",
            )
        if not 0 <= min(step.block_table) <= max(step.block_table) < self._kv_blocks:
            raise InvalidArgument(
                f"block ids must be below {self._kv_blocks}", field="steps.block_table"
            )


def _check_ids(ids: Collection[int], limit: int, field: str) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < limit:
        raise InvalidArgument(f"{field} must be token ids below {limit}", field=field)
