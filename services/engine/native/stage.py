"""A stage: what the engine's runtime drives, over some arithmetic."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.common.errors import FailedPrecondition
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    ResidentLayer,
    ResidentTensor,
    Sampled,
    StageFacts,
)
from services.engine.core.kv_layout import KvLayout
from services.engine.native.arithmetic import Arithmetic, PackedWeights, Packing
from services.engine.native.exactness import is_exact
from services.engine.native.meeting import Meeting
from services.engine.stage.exactness import BLOCKS
from services.engine.stage.exchange import check_blocks, check_size, check_sizes
from services.engine.stage.slots import Slots
from services.engine.stage.spans import spans_of
from services.model.config import ModelConfig
from services.model.grammar import LateGrammars

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """A packed layer; the first one with the embedding, the last one with final norm and head."""

    packed: PackedWeights
    embedding: Tensor | None  # [vocab, hidden], of a rank its rows of the vocabulary
    head: PackedWeights | None
    tensors: tuple[ResidentTensor, ...]

    @property
    def resident(self) -> ResidentLayer:
        head_bytes = 0 if self.head is None else self.head.packed_bytes
        return ResidentLayer(self.tensors, self.packed.packed_bytes + head_bytes)


@dataclass(frozen=True, slots=True)
class KvHeads:
    """The key-value heads that lie at a rank, of those of the model."""

    own: range
    all: int


class NativeStage:
    """Implements StageBackend: checks a batch, runs it, samples what is asked for. Where it is one
    of several ranks, all make the same calls, and come to the same answers."""

    def __init__(
        self,
        facts: StageFacts,
        packing: Packing[Any, Any],
        layers: Mapping[int, NativeLayer],
        meeting: Meeting | None = None,
        grammars: LateGrammars | None = None,
        *,
        heads: KvHeads,
    ) -> None:
        self._facts = facts
        self._heads = heads
        self._packing, self._meeting = packing, meeting
        self._layers = dict(layers)
        self._arithmetic: Arithmetic | None = None
        self._kv_blocks = 0
        self._slots = Slots(facts, grammars)

    @property
    def facts(self) -> StageFacts:
        return self._facts

    @property
    def lost(self) -> str:
        return ""

    @property
    def computed_s(self) -> float:
        return time.thread_time()

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        return {number: layer.resident for number, layer in self._layers.items()}

    @property
    def kv_layout(self) -> KvLayout:
        packing, name = self._packing, self._facts.numerics_class
        sizes = (self._heads.all, packing.kv_head_bytes, BLOCK_SIZE)
        return KvLayout(packing.kv_form, *sizes, name, self._facts.hidden_dtype)

    @property
    def kv_heads(self) -> range:
        return self._heads.own

    def export_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        arithmetic = self._exchanging(blocks)
        if not blocks:
            return []
        data = arithmetic.export_blocks(torch.tensor(blocks)).flatten(1).numpy()
        return [block.tobytes() for block in data]

    def import_blocks(self, blocks: Sequence[int], data: Sequence[bytes | memoryview]) -> None:
        arithmetic, layout = self._exchanging(blocks), self.kv_layout
        layers, own = self._facts.layers, self._heads.own
        check_sizes(layout, layers, blocks, data)
        if not blocks:
            return
        joined = bytearray().join(layout.of_heads(layers, one, own) for one in data)
        shape = (len(blocks), len(layers), len(own), layout.head_bytes)
        there = torch.frombuffer(joined, dtype=torch.uint8).view(shape)
        arithmetic.import_blocks(torch.tensor(blocks), there)

    def _exchanging(self, blocks: Sequence[int]) -> Arithmetic:
        if self._arithmetic is None:
            raise FailedPrecondition("the stage has no cache: it is closed, or in no formation")
        check_blocks(blocks, self._kv_blocks)
        return self._arithmetic

    def begin(self, kv_blocks: int) -> None:
        self.end()
        if not self._layers:
            raise FailedPrecondition("the stage is closed")
        layers = [layer.packed for layer in self._layers.values()]
        head = self._layers[self._facts.layers.stop - 1].head
        self._arithmetic = self._packing.arithmetic(layers, head, kv_blocks)
        self._kv_blocks = kv_blocks

    def begin_again(self, kv_blocks: int) -> None:
        check_size(self._kv_blocks, kv_blocks)
        self._slots.clear()

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
        self.begin(BLOCKS)
        try:
            assert self._arithmetic is not None
            return is_exact(self._arithmetic, config, BLOCKS, dtype, last=self._facts.last)
        finally:
            self.end()

    def declare(self, numerics_class: str, *, exact: bool) -> None:
        """Set what the self-test found."""
        self._facts = replace(self._facts, numerics_class=numerics_class, exact=exact)

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        if self._arithmetic is None:
            raise FailedPrecondition("the stage has no cache: it is closed, or in no formation")
        self._slots.check(batch, rows, self._kv_blocks)
        hidden = self._unpack(rows) if isinstance(rows, Hidden) else self._embed(rows)
        self._slots.apply(batch)
        asked = batch.asked_rows if self._facts.last else None
        if spans := spans_of(batch.steps):
            hidden = self._arithmetic.forward(hidden, spans, asked)
        if asked is None:
            return self._pack(hidden)
        if not asked:
            return ()
        return self._slots.sample(batch, self._arithmetic.logits(hidden).numpy())

    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        embedding = self._layers[self._facts.layers.start].embedding
        assert embedding is not None
        ids = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))
        if self._meeting is None:
            return embedding.index_select(0, ids.to(embedding.device))  # a row at a time
        owners, own = ids // len(embedding), ids % len(embedding)
        every = self._meeting.gather(embedding.index_select(0, own))
        return every[torch.arange(len(ids)), owners]

    def _unpack(self, hidden: Hidden) -> Tensor:
        # A copy: the layers write in place.
        received = torch.empty((hidden.rows, self._facts.row_width), dtype=DTYPES[hidden.dtype])
        received.view(torch.uint8).view(-1).numpy()[:] = np.frombuffer(hidden.data, dtype=np.uint8)
        return received

    def _pack(self, hidden: Tensor) -> Hidden:
        data = hidden.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return Hidden(self._facts.hidden_dtype, len(hidden), data)
