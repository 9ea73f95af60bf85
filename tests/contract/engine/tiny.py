"""A backend without a model: a token is a checksum of all that came before it.

Layers change the hidden states in an order that matters, and the last stage reads its context
through the block tables; so a stage left out, a block used twice or a slot mixed up is a wrong id.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from services.common.errors import InvalidArgument, Unavailable
from services.common.generation import LayerRange, ModelRef, TokenLogprob
from services.common.nodes import StageSpec
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    ResidentLayer,
    ResidentTensor,
    Sampled,
    SequenceOpen,
    StageFacts,
)
from services.engine.core.kv_layout import KvLayout
from services.engine.core.memory import StageSize
from services.engine.stage.exchange import check_blocks, check_size, check_sizes
from services.engine.stages import Progress

LAYERS = 6
VOCAB = 997
CONTEXT = 512
MODEL = ModelRef("tiny", "d1")
LAYER_BYTES = 200_000
REPEATS = 700
"""The seed of texts that repeat themselves."""
KV_BLOCK_BYTES = 1_000
"""Of a layer."""


@dataclass
class TinyBackend:
    """Implements StageBackend; `step_s` is how long a step takes, `busy_s` how long it needs a
    core."""

    layers: range
    step_s: float = 0.0
    busy_s: float = 0.0
    kv_blocks: int = 0
    slots: dict[int, tuple[SequenceOpen, int]] = field(default_factory=dict)
    cache: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """What a layer made of the row at a place of a block."""
    stuck: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    @property
    def facts(self) -> StageFacts:
        return StageFacts(
            layers=self.layers,
            layer_count=LAYERS,
            row_width=1,
            vocab_size=VOCAB,
            context_length=CONTEXT,
            hidden_dtype="fp32",
            numerics_class="exact-tiny",
            exact=True,
        )

    @property
    def lost(self) -> str:
        return ""

    @property
    def computed_s(self) -> float:
        return time.thread_time()

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        assert self.kv_blocks
        assert not self.closed
        while self.stuck.is_set():
            time.sleep(0.01)
        if self.step_s:
            time.sleep(self.step_s)
        done_s = time.thread_time() + self.busy_s
        while time.thread_time() < done_s:
            pass
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
        for layer in self.layers:
            values = [_through(value, layer) for value in values]
            self._write(layer, batch, values)
        if self.layers.stop < LAYERS:
            return Hidden("fp32", len(values), b"".join(v.to_bytes(4, "little") for v in values))
        return self._sample(batch, values)

    def _write(self, layer: int, batch: Batch, values: list[int]) -> None:
        """What it made of the rows, beside what it made of those before them."""
        rows = iter(values)
        for step in batch.steps:
            for position in range(step.start, step.start + step.count):
                index, offset = divmod(position, BLOCK_SIZE)
                self.cache[layer, step.block_table[index], offset] = next(rows)
            opened, _ = self.slots[step.slot]
            known = (*opened.prompt_ids, *opened.output_ids)[: step.start]
            for position, token in enumerate(known):
                index, offset = divmod(position, BLOCK_SIZE)
                held = self.cache[layer, step.block_table[index], offset]
                assert held == reduce(_through, range(layer + 1), token), "another text's block"

    @property
    def kv_layout(self) -> KvLayout:
        return KvLayout("tiny", 1, 4 * BLOCK_SIZE, BLOCK_SIZE, self.facts.numerics_class)

    @property
    def kv_heads(self) -> range:
        return range(1)

    def export_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        check_blocks(blocks, self.kv_blocks)
        return [
            b"".join(
                self.cache.get((layer, block, offset), 0).to_bytes(4, "little")
                for layer in self.layers
                for offset in range(BLOCK_SIZE)
            )
            for block in blocks
        ]

    def import_blocks(self, blocks: Sequence[int], data: Sequence[bytes | memoryview]) -> None:
        check_blocks(blocks, self.kv_blocks)
        check_sizes(self.kv_layout, self.layers, blocks, data)
        for block, one in zip(blocks, data, strict=True):
            numbers = iter(memoryview(bytes(one)).cast("I"))
            for layer in self.layers:
                for offset in range(BLOCK_SIZE):
                    self.cache[layer, block, offset] = next(numbers)

    def _sample(self, batch: Batch, values: list[int]) -> tuple[Sampled, ...]:
        sampled, first = [], 0
        layer = self.layers.stop - 1
        for step in batch.steps:
            first += step.count
            if not step.sample:
                continue
            opened, position = self.slots[step.slot]
            known = step.start + step.count - len(step.drafts)
            assert known == len(opened.prompt_ids) + position
            for end, draft in enumerate((*step.drafts, None), known):
                context = [
                    self.cache[layer, step.block_table[p // BLOCK_SIZE], p % BLOCK_SIZE]
                    for p in range(end)
                ]
                token = next_token(context, opened.sampling.seed, opened.choice)
                logprob = None if opened.sampling.top_logprobs is None else TokenLogprob(-0.5)
                sampled.append(Sampled(step.slot, position, token, logprob))
                position += 1
                self.slots[step.slot] = (opened, position)
                if token != draft:
                    break
        return tuple(sampled)

    def resident_layers(self) -> dict[int, ResidentLayer]:
        return {
            i: ResidentLayer((ResidentTensor(f"model.layers.{i}.w", LAYER_BYTES),), 64)
            for i in self.layers
        }

    def begin(self, kv_blocks: int) -> None:
        self.end()
        self.kv_blocks = kv_blocks

    def begin_again(self, kv_blocks: int) -> None:
        check_size(self.kv_blocks, kv_blocks)
        self.slots.clear()

    def end(self) -> None:
        self.slots.clear()
        self.cache.clear()
        self.kv_blocks = 0

    def close(self) -> None:
        self.end()
        self.closed = True


@dataclass
class TinyLoader:
    """Implements StageLoader; layers are bytes that are only counted."""

    step_s: float = 0.0
    computed_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    """While it is set, loads wait."""
    failures: int = 0
    """Loads that fail yet, behind their first layer."""
    backends: list[TinyBackend] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    """Layers, as often as they were read."""
    prefetched: list[LayerRange] = field(default_factory=list)
    held: set[int] = field(default_factory=set)

    def warm(self) -> None:
        """There is nothing to import."""

    def measure(self, model: ModelRef, spec: StageSpec) -> StageSize:
        layers = spec.layers
        if spec.tp_degree > 1:
            raise InvalidArgument("a checksum has no slices", field="stages.tp_degree")
        if layers.end > LAYERS:
            raise InvalidArgument(f"the model has {LAYERS} layers", field="stages.layers")
        sizes = dict.fromkeys(range(layers.start, layers.end), LAYER_BYTES)
        return StageSize(model, spec, sizes, KV_BLOCK_BYTES * len(sizes))

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> TinyBackend:
        layers = spec.layers
        lacking = [i for i in range(layers.start, layers.end) if i not in self.held]
        total_bytes = LAYER_BYTES * len(lacking)
        for done, layer in enumerate(lacking, 1):
            progress(done * LAYER_BYTES - 1, total_bytes)
            self._wait(progress, done * LAYER_BYTES - 1, total_bytes)
            self.read.append(layer)
            self.held.add(layer)
            progress(done * LAYER_BYTES, total_bytes)
            if self.failures:
                self.failures -= 1
                raise Unavailable("the store is away", field="store")
        span = range(layers.start, layers.end)
        self.backends.append(TinyBackend(span, self.step_s, self.computed_s))
        return self.backends[-1]

    def prefetch(self, model: ModelRef, spec: StageSpec, progress: Progress) -> None:
        layers = spec.layers
        self._wait(progress, 0, LAYER_BYTES * len(layers))
        self.prefetched.append(layers)
        progress(LAYER_BYTES * len(layers), LAYER_BYTES * len(layers))

    def retain(self, layers: Mapping[ModelRef, Collection[int]]) -> None:
        self.held &= {layer for held in layers.values() for layer in held}

    def _wait(self, progress: Progress, done_bytes: int, total_bytes: int) -> None:
        while self.gate.is_set():
            progress(done_bytes, total_bytes)
            time.sleep(0.01)


def _through(value: int, layer: int) -> int:
    return (value * 31 + layer + 1) % (1 << 32)


def next_token(context: Sequence[int], seed: int, choice: int) -> int:
    """The id behind hidden states that went through all layers; by one seed a text mostly says
    again what it said behind the same two ids."""
    data = b"".join(v.to_bytes(4, "little") for v in (*context, seed, choice))
    state = zlib.crc32(data)
    if seed == REPEATS and state % 7:
        return zlib.crc32(data[-16:]) % 8
    return state % VOCAB


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
