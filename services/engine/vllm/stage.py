"""A stage on vLLM: what the engine's runtime drives, over layers that vLLM computes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.errors import FailedPrecondition
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    ResidentLayer,
    Sampled,
    StageFacts,
)
from services.engine.core.kv_layout import KvLayout
from services.engine.stage import exactness
from services.engine.stage.exactness import Rows
from services.engine.stage.exchange import check_blocks, check_size, check_sizes
from services.engine.stage.slots import Slots
from services.engine.stage.spans import Span, spans_of
from services.model.grammar import LateGrammars

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SEED = 1


class Layers(Protocol):
    """What computes: layers, or one rank's part of them."""

    @property
    def kv_form(self) -> str:
        """How a head's keys and values of a block lie in what is exported."""
        ...

    @property
    def kv_head_bytes(self) -> int:
        """Of them, in one layer."""
        ...

    @property
    def kv_heads(self) -> tuple[range, int]:
        """Key-value heads that lie at this rank, and how many the model has."""
        ...

    def export_blocks(self, blocks: Tensor) -> Tensor:
        """uint8 [blocks, layers, kv_heads, bytes] on the CPU, of block ids int64 [blocks]."""
        ...

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        """Has blocks hold what was exported."""
        ...

    def allocate(self, blocks: int) -> None:
        """An empty KV cache of blocks 0 to blocks - 1."""
        ...

    def release(self) -> None:
        """The cache goes."""
        ...

    def close(self) -> None:
        """Cache and weights go; nothing may be called afterwards."""
        ...

    def forward(self, rows: Tensor, spans: Sequence[Span]) -> Tensor:
        """Ids [rows] at the first stage, else [rows, row_width], through the layers."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [rows, vocab_size] on the host; the same at every rank."""
        ...


class VllmStage:
    """Implements StageBackend: checks a batch, has it computed, samples what is asked for. Where it
    is one of several ranks, all make the same calls, and come to the same answers."""

    def __init__(
        self,
        facts: StageFacts,
        layers: Layers,
        resident: Mapping[int, ResidentLayer],
        grammars: LateGrammars | None = None,
    ) -> None:
        """Inexact until the self-test says otherwise; `facts` name the class without a prefix."""
        self._facts = replace(facts, numerics_class=f"inexact-{facts.numerics_class}", exact=False)
        self._layers: Layers | None = layers
        self._resident = dict(resident)
        self._kv_blocks = 0
        self._slots = Slots(self._facts, grammars)
        if self._is_exact():
            exact = f"exact-{facts.numerics_class}"
            self._facts = replace(self._facts, numerics_class=exact, exact=True)

    @property
    def facts(self) -> StageFacts:
        return self._facts

    def resident_layers(self) -> Mapping[int, ResidentLayer]:
        return self._resident

    @property
    def lost(self) -> str:
        return ""

    @property
    def computed_s(self) -> float:
        return time.thread_time()

    @property
    def kv_layout(self) -> KvLayout:
        layers = self._open_layers()
        sizes = (layers.kv_heads[1], layers.kv_head_bytes, BLOCK_SIZE)
        return KvLayout(layers.kv_form, *sizes, self._facts.numerics_class)

    @property
    def kv_heads(self) -> range:
        return self._open_layers().kv_heads[0]

    def export_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        layers = self._exchanging(blocks)
        if not blocks:
            return []
        data = layers.export_blocks(torch.tensor(blocks)).flatten(1).numpy()
        return [block.tobytes() for block in data]

    def import_blocks(self, blocks: Sequence[int], data: Sequence[bytes | memoryview]) -> None:
        layers, layout, span = self._exchanging(blocks), self.kv_layout, self._facts.layers
        check_sizes(layout, span, blocks, data)
        if not blocks:
            return
        joined = bytearray().join(layout.of_heads(span, one, self.kv_heads) for one in data)
        shape = (len(blocks), len(span), len(self.kv_heads), layout.head_bytes)
        there = torch.frombuffer(joined, dtype=torch.uint8).view(shape)
        layers.import_blocks(torch.tensor(blocks), there)

    def _exchanging(self, blocks: Sequence[int]) -> Layers:
        if not self._kv_blocks:
            raise FailedPrecondition("the stage has no cache: it is closed, or in no formation")
        check_blocks(blocks, self._kv_blocks)
        return self._open_layers()

    def _open_layers(self) -> Layers:
        if self._layers is None:
            raise FailedPrecondition("the stage is closed")
        return self._layers

    def begin(self, kv_blocks: int) -> None:
        self.end()
        self._open_layers().allocate(kv_blocks)
        self._kv_blocks = kv_blocks

    def begin_again(self, kv_blocks: int) -> None:
        check_size(self._kv_blocks, kv_blocks)
        self._slots.clear()

    def end(self) -> None:
        self._slots.clear()
        if self._layers is not None and self._kv_blocks:
            self._layers.release()
        self._kv_blocks = 0

    def close(self) -> None:
        self.end()
        if self._layers is not None:
            self._layers.close()
        self._layers = None
        self._resident = {}

    def forward(self, batch: Batch, rows: Sequence[int] | Hidden) -> Hidden | tuple[Sampled, ...]:
        if self._layers is None or not self._kv_blocks:
            raise FailedPrecondition("the stage has no cache: it is closed, or in no formation")
        self._slots.check(batch, rows, self._kv_blocks)
        self._slots.apply(batch)
        spans = spans_of(batch.steps)
        if not spans:
            return () if self._facts.last else Hidden(self._facts.hidden_dtype, 0, b"")
        hidden = self._layers.forward(self._tensor(rows), spans)
        if not self._facts.last:
            data = hidden.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            return Hidden(self._facts.hidden_dtype, len(hidden), data)
        asked = batch.asked_rows
        if not asked:
            return ()
        return self._slots.sample(batch, self._layers.logits(hidden[asked]).numpy())

    def _tensor(self, rows: Sequence[int] | Hidden) -> Tensor:
        if not isinstance(rows, Hidden):
            return torch.from_numpy(np.asarray(rows, dtype=np.int64))
        received = torch.frombuffer(bytearray(rows.data), dtype=DTYPES[rows.dtype])
        return received.view(rows.rows, self._facts.row_width)

    def _is_exact(self) -> bool:
        """Asks the self-test, over a cache of its own."""
        facts, chance = self._facts, np.random.default_rng(SEED)

        def draw(rows: int) -> Rows:
            if facts.first:
                return chance.integers(0, facts.vocab_size, rows, dtype=np.int64)
            return chance.standard_normal((rows, facts.row_width), dtype=np.float32)

        self.begin(exactness.BLOCKS)
        assert self._layers is not None
        try:
            return exactness.is_exact(
                _Computes(self._layers, DTYPES[facts.hidden_dtype]),
                draw,
                context_length=facts.context_length,
                last=facts.last,
            )
        finally:
            self.end()


class _Computes:
    """Layers as the self-test asks them: arrays in and out."""

    def __init__(self, layers: Layers, dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype

    def forward(self, rows: Rows, spans: Sequence[Span]) -> Rows:
        return self._layers.forward(self._tensor(rows), spans).cpu().float().numpy()

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        return self._layers.logits(self._tensor(rows)).numpy()

    def _tensor(self, rows: Rows) -> Tensor:
        given = torch.from_numpy(rows)
        return given.to(self._dtype) if given.is_floating_point() else given
