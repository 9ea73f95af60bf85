"""The layers of a stage in the C++ kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.engine.backend import BLOCK_SIZE
from services.engine.native.kernels import Kernels
from services.engine.native.meeting import Meeting
from services.engine.native.padding import HeadPadding, whole_lanes, widen
from services.engine.native.rope import rope_table
from services.engine.native.slices import Slice
from services.engine.native.weights import (
    Arena,
    LayerWeights,
    embedding_matrix,
    final_norm,
    interleave,
    layer_weights,
    pack,
    packed_size_bytes,
    whole_blocks,
)
from services.engine.stage.spans import Span
from services.model.rope import Rope
from services.model.tensors import EMBEDDING, LM_HEAD


@dataclass(frozen=True, slots=True)
class CompiledLayer:
    """One layer's tensors where the kernels look for them."""

    norms: tuple[Tensor | None, ...]
    """Before attention and before the feed-forward layer, behind both, of queries and of keys."""
    matrices: tuple[Tensor, ...]
    """Of qkv, output, gate with up, and down."""
    biases: tuple[Tensor | None, ...]
    """Of the same."""
    window: int
    rope: Rope | None

    @property
    def packed_bytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)


@dataclass(frozen=True, slots=True)
class CompiledHead:
    """What makes logits of hidden states."""

    norm: Tensor
    matrix: Tensor

    @property
    def packed_bytes(self) -> int:
        return self.matrix.nbytes


class CompiledPacking:
    """Implements Packing: of a whole model, or of a rank's slice of it, whose tensors it takes."""

    def __init__(
        self,
        kernels: Kernels,
        part: Slice,
        dtype: torch.dtype,
        threads: int,
        meeting: Meeting | None = None,
    ) -> None:
        """`meeting` is where the ranks meet, if there are several."""
        kind = "bf16" if dtype == torch.bfloat16 else "fp32"
        arithmetic = kernels.level.arithmetic if dtype == torch.bfloat16 else "fma"
        self.name = f"cpu-{kind}-{arithmetic}-{kernels.digest}"
        self.kv_form = "native-steps"  # as attention.h has them
        self.kv_head_bytes = 2 * part.padded.head_dim * BLOCK_SIZE * dtype.itemsize
        self._kernels, self._part, self._meeting = kernels, part, meeting
        self._config, self._dtype, self._threads = part.config, dtype, threads
        self._sizes = part.padded
        self._heads = HeadPadding(part.config.head_dim)

    def layer(self, tensors: Mapping[str, Tensor], layer: int) -> CompiledLayer:
        weights = layer_weights(self._config, tensors, layer, self._dtype)
        sizes, heads = self._sizes, self._heads
        hidden, inner = sizes.hidden_size, sizes.intermediate_size
        attention, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        shapes = [
            *((attention + 2 * keys, hidden), (hidden, attention)),
            *((2 * inner, hidden), (hidden, inner)),
        ]
        sizes_bytes = [packed_size_bytes(*shape, self._dtype) for shape in shapes]
        arena = Arena(sum(map(Arena.rounded, sizes_bytes)))
        matrices = tuple(map(arena.take, sizes_bytes))
        qkv = torch.cat([heads.rows(part) for part in (weights.q, weights.k, weights.v)])
        pack(widen(qkv, len(qkv), hidden), matrices[0])
        pack(widen(heads.columns(weights.output), hidden, attention), matrices[1])
        gate, up = (self._inner(widen(m, len(m), hidden)) for m in (weights.gate, weights.up))
        pack(interleave(gate, up), matrices[2])
        down = self._inner(widen(weights.down, hidden, weights.down.shape[1]).t()).t()
        pack(down, matrices[3])
        norms = (
            *(weights.input_norm, weights.mlp_norm),
            *(weights.attention_post_norm, weights.mlp_post_norm),
        )
        head_norms = (weights.q_norm, weights.k_norm)
        return CompiledLayer(
            (
                *(None if norm is None else _copied(widen(norm, hidden)) for norm in norms),
                *(None if norm is None else _copied(heads.rows(norm)) for norm in head_norms),
            ),
            matrices,
            tuple(map(_copied, self._biases(weights))),
            self._config.window(layer),
            self._config.rope_of(layer),
        )

    def embedding(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return embedding_matrix(self._config, tensors, self._dtype)

    def head(self, tensors: Mapping[str, Tensor]) -> CompiledHead:
        config, hidden = self._config, self._sizes.hidden_size
        head = tensors[EMBEDDING if config.tied_embeddings else LM_HEAD].to(self._dtype)
        size_bytes = packed_size_bytes(config.vocab_size, hidden, self._dtype)
        matrix = Arena(size_bytes).take(size_bytes)
        pack(widen(head, config.vocab_size, hidden), matrix)
        return CompiledHead(widen(final_norm(config, tensors), hidden), matrix)

    def arithmetic(
        self, layers: Sequence[CompiledLayer], head: CompiledHead | None, kv_blocks: int
    ) -> CompiledLayers:
        return CompiledLayers(
            self._kernels,
            self._part,
            layers,
            head,
            self._dtype,
            kv_blocks,
            self._threads,
            self._meeting,
        )

    def _inner(self, rows: Tensor) -> Tensor:
        """[intermediate_size, ...] with every part in whole lanes."""
        parts, rest = self._part.parts, rows.shape[1:]
        size = len(rows) // parts
        if size == whole_lanes(size):
            return rows
        return widen(rows.reshape(parts, size, *rest), parts, whole_lanes(size), *rest).flatten(
            0, 1
        )

    def _biases(self, weights: LayerWeights) -> list[Tensor | None]:
        """Of qkv, output, gate with up, and down; each in whole column blocks."""
        found: list[Tensor | None] = [None, weights.output_bias, None, weights.down_bias]
        if weights.q_bias is not None:
            parts = (weights.q_bias, weights.k_bias, weights.v_bias)
            found[0] = torch.cat([self._heads.rows(part) for part in parts if part is not None])
        if weights.gate_bias is not None and weights.up_bias is not None:
            found[2] = interleave(self._inner(weights.gate_bias), self._inner(weights.up_bias))
        return [None if bias is None else widen(bias, whole_blocks(len(bias))) for bias in found]


def _copied(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous().clone()


class CompiledLayers:
    """Exact whatever the batch, the chunks, the threads: see kernels/vectors.h."""

    def __init__(
        self,
        kernels: Kernels,
        part: Slice,
        layers: Sequence[CompiledLayer],
        head: CompiledHead | None,
        dtype: torch.dtype,
        kv_blocks: int,
        threads: int,
        meeting: Meeting | None,
    ) -> None:
        config = part.config
        self._kernels, self._meeting = kernels, meeting
        self._threads = threads
        self._vocab_size = config.vocab_size
        self._logits = (config.logits_divisor, config.logits_cap or 0.0)
        self._hidden_size = config.hidden_size
        self._sizes = sizes = part.padded
        self._layers, self._head = layers, head
        positions = min(config.context_length, kv_blocks * BLOCK_SIZE)
        ropes = {
            rope: rope_table(rope, positions, sizes.head_dim)
            for rope in {layer.rope for layer in layers}
        }
        shape = np.array(
            [
                *(sizes.hidden_size, sizes.heads, sizes.kv_heads, sizes.head_dim),
                *(sizes.intermediate_size, config.hidden_size, config.head_dim, part.parts),
                *(config.activation == "gelu", config.whole_qk_norm),
            ],
            dtype=np.int64,
        )
        numbers = np.array(
            [
                *(config.rms_norm_eps, config.score_scale),
                *(config.attention_cap or 0.0, config.residual_scale),
            ],
            dtype=np.float32,
        )
        self._stage: int = kernels.stage_new(
            int(dtype == torch.bfloat16),
            shape.ctypes.data,
            numbers.ctypes.data,
            None if meeting is None else meeting.handle,
        )
        cache_bytes = sizes.kv_heads * sizes.head_dim * BLOCK_SIZE * kv_blocks * dtype.itemsize
        cache = Arena(Arena.rounded(cache_bytes) * 2 * len(layers))
        self._memory = list(ropes.values())
        self._pages: list[Tensor] = []
        """Keys and values of each layer in turn, uint8 [blocks, kv_heads, bytes]."""
        for layer in layers:
            caches = [cache.take(cache_bytes), cache.take(cache_bytes)]
            self._memory += caches
            self._pages += [pages.view(kv_blocks, sizes.kv_heads, -1) for pages in caches]
            parts = (
                *(*layer.norms, ropes[layer.rope]),
                *(*layer.matrices, *caches, *layer.biases),
            )
            pointers = [None if part is None else part.data_ptr() for part in parts]
            kernels.stage_add_layer(
                self._stage, (ctypes.c_void_p * len(parts))(*pointers), layer.window
            )

    def forward(
        self, hidden: Tensor, spans: Sequence[Span], asked: Sequence[int] | None = None
    ) -> Tensor:
        rows = hidden.shape[0]  # len() of a tensor takes ten times as long
        kept = np.array(np.arange(rows) if asked is None else asked, dtype=np.int64)
        numbers: list[tuple[int, int, int, int]] = []
        tables: list[int] = []
        for span in spans:
            numbers.append((span.first, span.count, span.start, len(tables)))
            tables.extend(span.table)
        sequences, blocks = np.array(numbers, dtype=np.int64), np.array(tables, dtype=np.int32)
        hidden = widen(hidden, rows, self._sizes.hidden_size)
        self._kernels.stage_forward(
            self._stage,
            hidden.data_ptr(),
            rows,
            sequences.ctypes.data,
            len(numbers),
            blocks.ctypes.data,
            kept.ctypes.data,
            len(kept),
            self._threads,
        )
        hidden = hidden[: len(kept)]
        if self._sizes.hidden_size == self._hidden_size:
            return hidden
        return hidden[:, : self._hidden_size].contiguous()

    def logits(self, hidden: Tensor) -> Tensor:
        assert self._head is not None
        rows = hidden.shape[0]
        hidden = widen(hidden, rows, self._sizes.hidden_size)
        logits = torch.empty((rows, whole_blocks(self._vocab_size)), dtype=torch.float32)
        self._kernels.stage_head(
            self._stage,
            hidden.data_ptr(),
            rows,
            self._head.norm.data_ptr(),
            self._head.matrix.data_ptr(),
            self._vocab_size,
            *self._logits,
            logits.data_ptr(),
            self._threads,
        )
        own = logits[:, : self._vocab_size]
        return own if self._meeting is None else self._meeting.gather(own).flatten(1)

    def export_blocks(self, blocks: Tensor) -> Tensor:
        pages = torch.stack([page[blocks] for page in self._pages], 1)
        shape = (len(blocks), len(self._layers), 2, *pages.shape[2:])
        return pages.view(shape).transpose(2, 3).flatten(3)  # of a head its keys, then its values

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        pages = data.view(*data.shape[:3], 2, -1).transpose(2, 3).flatten(1, 2)
        for own, page in zip(self._pages, pages.unbind(1), strict=True):
            own[blocks] = page

    def close(self) -> None:
        if self._stage:
            self._kernels.stage_free(self._stage)
            self._stage = 0
            self._pages.clear()
            self._memory.clear()
            self._layers, self._head = (), None
