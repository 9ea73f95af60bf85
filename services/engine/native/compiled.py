"""The layers of a stage in the C++ kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from services.engine.backend import BLOCK_SIZE
from services.engine.native.arithmetic import Span
from services.engine.native.kernels import Kernels
from services.engine.native.padding import HeadPadding, padded, widen
from services.engine.native.rope import rope_table
from services.engine.native.weights import (
    Arena,
    LayerWeights,
    interleave,
    layer_weights,
    pack,
    packed_size_bytes,
    whole_blocks,
)
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, FINAL_NORM, LM_HEAD


class CompiledLayers:
    """Exact whatever the batch, the chunks, the threads: see kernels/vectors.h."""

    def __init__(
        self,
        kernels: Kernels,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        layers: range,
        dtype: torch.dtype,
        kv_blocks: int,
        threads: int,
    ) -> None:
        self._kernels = kernels
        self._threads = threads
        self._vocab_size = config.vocab_size
        self._hidden_size = config.hidden_size
        self._sizes = sizes = padded(config)
        self._heads = HeadPadding(config.head_dim)
        kind = "bf16" if dtype == torch.bfloat16 else "fp32"
        arithmetic = kernels.level.arithmetic if dtype == torch.bfloat16 else "fma"
        self.name = f"cpu-{kind}-{arithmetic}-{kernels.digest}"
        positions = min(config.context_length, kv_blocks * BLOCK_SIZE)
        self._held: list[Tensor] = [self._heads.rope(rope_table(config.rope, positions))]
        shape = np.array(
            [
                *(sizes.hidden_size, sizes.heads, sizes.kv_heads, sizes.head_dim),
                *(sizes.intermediate_size, config.hidden_size, config.head_dim),
            ],
            dtype=np.int64,
        )
        self._stage: int = kernels.stage_new(
            int(dtype == torch.bfloat16),
            shape.ctypes.data,
            config.rms_norm_eps,
            config.head_dim**-0.5,
            self._held[0].data_ptr(),
        )
        last = layers.stop == config.layer_count
        attention, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        matrices = [
            (attention + 2 * keys, sizes.hidden_size),
            (sizes.hidden_size, attention),
            (2 * sizes.intermediate_size, sizes.hidden_size),
            (sizes.hidden_size, sizes.intermediate_size),
        ]
        packed_bytes = [packed_size_bytes(*matrix, dtype) for matrix in matrices]
        head_bytes = packed_size_bytes(config.vocab_size, sizes.hidden_size, dtype) if last else 0
        self.packed_bytes = sum(packed_bytes) * len(layers) + head_bytes
        arena = Arena(sum(map(Arena.rounded, (*packed_bytes * len(layers), head_bytes))))
        cache_bytes = keys * BLOCK_SIZE * kv_blocks * dtype.itemsize
        cache = Arena(Arena.rounded(cache_bytes) * 2 * len(layers))
        for layer in layers:
            packed = [arena.take(size) for size in packed_bytes]
            caches = [cache.take(cache_bytes), cache.take(cache_bytes)]
            weights = layer_weights(config, tensors, layer, dtype)
            self._add_layer(weights, packed, caches, config.window(layer))
        if last:
            head = tensors[EMBEDDING if config.tied_embeddings else LM_HEAD]
            self._head = arena.take(head_bytes)
            pack(widen(head.to(dtype), config.vocab_size, sizes.hidden_size), self._head)
            self._norm = widen(tensors[FINAL_NORM].float(), sizes.hidden_size).clone()

    def _add_layer(
        self, weights: LayerWeights, packed: list[Tensor], caches: list[Tensor], window: int
    ) -> None:
        """Lays out one layer's tensors where the kernels look for them."""
        sizes, heads = self._sizes, self._heads
        hidden, inner = sizes.hidden_size, sizes.intermediate_size
        attention = sizes.heads * sizes.head_dim
        qkv = torch.cat([heads.rows(part) for part in (weights.q, weights.k, weights.v)])
        pack(widen(qkv, len(qkv), hidden), packed[0])
        pack(widen(heads.columns(weights.output), hidden, attention), packed[1])
        gate, up = (widen(part, inner, hidden) for part in (weights.gate, weights.up))
        pack(interleave(gate, up), packed[2])
        pack(widen(weights.down, hidden, inner), packed[3])
        norms = [widen(norm, hidden) for norm in (weights.input_norm, weights.post_norm)]
        head_norms = [
            None if norm is None else heads.rows(norm) for norm in (weights.q_norm, weights.k_norm)
        ]
        copies = [
            None if vector is None else vector.contiguous().clone()
            for vector in (*norms, *head_norms, *self._biases(weights))
        ]
        parts = (*copies[:4], *packed, *caches, *copies[4:])
        self._held.extend(part for part in parts if part is not None)
        pointers = [None if part is None else part.data_ptr() for part in parts]
        self._kernels.stage_add_layer(
            self._stage, (ctypes.c_void_p * len(parts))(*pointers), window
        )

    def _biases(self, weights: LayerWeights) -> list[Tensor | None]:
        """Of qkv, output, gate with up, and down; each in whole column blocks."""
        inner = self._sizes.intermediate_size
        found: list[Tensor | None] = [None, weights.output_bias, None, weights.down_bias]
        if weights.q_bias is not None:
            parts = (weights.q_bias, weights.k_bias, weights.v_bias)
            found[0] = torch.cat([self._heads.rows(part) for part in parts if part is not None])
        if weights.gate_bias is not None and weights.up_bias is not None:
            found[2] = interleave(widen(weights.gate_bias, inner), widen(weights.up_bias, inner))
        return [None if bias is None else widen(bias, whole_blocks(len(bias))) for bias in found]

    def forward(self, hidden: Tensor, spans: Sequence[Span]) -> Tensor:
        numbers = np.empty((len(spans), 4), dtype=np.int64)
        tables: list[int] = []
        for row, span in enumerate(spans):
            numbers[row] = (span.first, span.count, span.start, len(tables))
            tables.extend(span.table)
        blocks = np.array(tables, dtype=np.int32)
        hidden = widen(hidden, len(hidden), self._sizes.hidden_size)
        self._kernels.stage_forward(
            self._stage,
            hidden.data_ptr(),
            len(hidden),
            numbers.ctypes.data,
            len(spans),
            blocks.ctypes.data,
            self._threads,
        )
        return hidden[:, : self._hidden_size].contiguous()

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = widen(hidden, len(hidden), self._sizes.hidden_size)
        logits = torch.empty((len(hidden), whole_blocks(self._vocab_size)), dtype=torch.float32)
        self._kernels.stage_head(
            self._stage,
            hidden.data_ptr(),
            len(hidden),
            self._norm.data_ptr(),
            self._head.data_ptr(),
            self._vocab_size,
            logits.data_ptr(),
            self._threads,
        )
        return logits[:, : self._vocab_size]

    def close(self) -> None:
        if self._stage:
            self._kernels.stage_free(self._stage)
            self._stage = 0
            self._held.clear()
