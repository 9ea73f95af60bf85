"""A backend without a model: a token is a checksum of all that came before it.

Layers change the hidden states in an order that matters, and the last stage reads its context
through the block tables; so a stage left out, a block used twice or a slot mixed up is a wrong id.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange, ModelRef, TokenLogprob
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    ResidentTensor,
    Sampled,
    SequenceOpen,
    StageFacts,
)
from services.engine.loading import Progress

LAYERS = 6
VOCAB = 997
CONTEXT = 512
MODEL = ModelRef("tiny", "d1")


@dataclass
class TinyBackend:
    """Implements StageBackend; `step_s` is how long a step takes."""

    layers: range
    kv_blocks: int = 128
    step_s: float = 0.0
    slots: dict[int, tuple[SequenceOpen, int]] = field(default_factory=dict)
    cache: dict[tuple[int, int], int] = field(default_factory=dict)
    stuck: threading.Event = field(default_factory=threading.Event)
    resets: int = 0
    closed: bool = False
    packed_bytes: int = 64

    @property
    def facts(self) -> StageFacts:
        return StageFacts(
            layers=self.layers,
            layer_count=LAYERS,
            hidden_size=1,
            vocab_size=VOCAB,
            context_length=CONTEXT,
            kv_blocks=self.kv_blocks,
            hidden_dtype="fp32",
            numerics_class="exact-tiny",
            exact=True,
        )

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        assert not self.closed
        while self.stuck.is_set():
            time.sleep(0.01)
        if self.step_s:
            time.sleep(self.step_s)
        for slot in batch.closes:
            del self.slots[slot]
        for opened in batch.opens:
            if opened.slot in self.slots:
                raise InvalidArgument("slot is taken", field="opens.slot")
            self.slots[opened.slot] = (opened, len(opened.output_ids))
        if isinstance(rows, Hidden):
            raw = rows.data
            values = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
        else:
            values = list(rows)
        assert len(values) == batch.rows
        values = [reduce(_through, self.layers, value) for value in values]
        if self.layers.stop < LAYERS:
            return Hidden("fp32", len(values), b"".join(v.to_bytes(4, "little") for v in values))
        return self._sample(batch, values)

    def _sample(self, batch: Batch, values: list[int]) -> tuple[Sampled, ...]:
        sampled, first = [], 0
        for step in batch.steps:
            for offset in range(step.count):
                place = divmod(step.start + offset, BLOCK_SIZE)
                self.cache[step.block_table[place[0]], place[1]] = values[first + offset]
            first += step.count
            if not step.sample:
                continue
            opened, position = self.slots[step.slot]
            assert step.start + step.count == len(opened.prompt_ids) + position
            context = [
                self.cache[step.block_table[p // BLOCK_SIZE], p % BLOCK_SIZE]
                for p in range(step.start + step.count)
            ]
            token = next_token(context, opened.sampling.seed, opened.choice)
            logprob = None if opened.sampling.top_logprobs is None else TokenLogprob(-0.5)
            sampled.append(Sampled(step.slot, position, token, logprob))
            self.slots[step.slot] = (opened, position + 1)
        return tuple(sampled)

    def resident_tensors(self) -> tuple[ResidentTensor, ...]:
        return tuple(ResidentTensor(f"model.layers.{i}.w", 8) for i in self.layers)

    def reset(self) -> None:
        self.slots.clear()
        self.cache.clear()
        self.resets += 1

    def close(self) -> None:
        self.closed = True


@dataclass
class TinyLoader:
    """Implements StageLoader."""

    step_s: float = 0.0
    kv_blocks: int = 128
    gate: threading.Event = field(default_factory=threading.Event)
    backends: list[TinyBackend] = field(default_factory=list)

    def load(self, model: ModelRef, layers: LayerRange, progress: Progress) -> TinyBackend:
        if layers.end > LAYERS:
            raise InvalidArgument(f"the model has {LAYERS} layers", field="layers")
        progress(1, 2)
        while self.gate.is_set():
            time.sleep(0.01)
        self.backends.append(
            TinyBackend(range(layers.start, layers.end), self.kv_blocks, self.step_s)
        )
        return self.backends[-1]


def _through(value: int, layer: int) -> int:
    return (value * 31 + layer + 1) % (1 << 32)


def next_token(context: Sequence[int], seed: int, choice: int) -> int:
    """The id behind hidden states that went through all layers."""
    data = b"".join(v.to_bytes(4, "little") for v in (*context, seed, choice))
    return zlib.crc32(data) % VOCAB


def expected_ids(
    prompt_ids: Sequence[int], count: int, seed: int = 0, choice: int = 0
) -> list[int]:
    """What any layout must give."""
    context = [reduce(_through, range(LAYERS), token) for token in prompt_ids]
    ids: list[int] = []
    for _ in range(count):
        ids.append(next_token(context, seed, choice))
        context.append(reduce(_through, range(LAYERS), ids[-1]))
    return ids
