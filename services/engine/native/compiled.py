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
from services.engine.native.rope import rope_table
from services.engine.native.weights import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Arena,
    interleave,
    layer_weights,
    pack,
    packed_size_bytes,
)
from services.model.config import ModelConfig


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
        kind = "bf16" if dtype == torch.bfloat16 else "fp32"
        arithmetic = kernels.level.arithmetic if dtype == torch.bfloat16 else "fma"
        self.name = f"cpu-{kind}-{arithmetic}-{kernels.digest}"
        positions = min(config.context_length, kv_blocks * BLOCK_SIZE)
        self._held: list[Tensor] = [rope_table(config, positions)]
        shape = np.array(
            [
                config.hidden_size,
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.intermediate_size,
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
        attention, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        matrices = [
            (attention + 2 * keys, config.hidden_size),
            (config.hidden_size, attention),
            (2 * config.intermediate_size, config.hidden_size),
            (config.hidden_size, config.intermediate_size),
        ]
        sizes = [packed_size_bytes(*matrix, dtype) for matrix in matrices]
        head_bytes = packed_size_bytes(config.vocab_size, config.hidden_size, dtype) if last else 0
        self.packed_bytes = sum(sizes) * len(layers) + head_bytes
        arena = Arena(sum(map(Arena.rounded, (*sizes * len(layers), head_bytes))))
        cache_bytes = keys * BLOCK_SIZE * kv_blocks * dtype.itemsize
        cache = Arena(Arena.rounded(cache_bytes) * 2 * len(layers))
        for layer in layers:
            weights = layer_weights(config, tensors, layer, dtype)
            packed = [arena.take(size) for size in sizes]
            pack(torch.cat((weights.q, weights.k, weights.v)), packed[0])
            pack(weights.output, packed[1])
            pack(interleave(weights.gate, weights.up), packed[2])
            pack(weights.down, packed[3])
            norms = (weights.input_norm, weights.post_norm, weights.q_norm, weights.k_norm)
            copies = [None if norm is None else norm.contiguous().clone() for norm in norms]
            parts = (*copies, *packed, cache.take(cache_bytes), cache.take(cache_bytes))
            self._held.extend(part for part in parts if part is not None)
            pointers = [None if part is None else part.data_ptr() for part in parts]
            kernels.stage_add_layer(self._stage, (ctypes.c_void_p * len(parts))(*pointers))
        if last:
            head = tensors[EMBEDDING if config.tied_embeddings else HEAD]
            self._head = arena.take(head_bytes)
            pack(head.to(dtype), self._head)
            self._norm = tensors[FINAL_NORM].to(torch.float32, copy=True)

    def forward(self, hidden: Tensor, spans: Sequence[Span]) -> Tensor:
        numbers = np.empty((len(spans), 4), dtype=np.int64)
        tables: list[int] = []
        for row, span in enumerate(spans):
            numbers[row] = (span.first, span.count, span.start, len(tables))
            tables.extend(span.table)
        blocks = np.array(tables, dtype=np.int32)
        self._kernels.stage_forward(
            self._stage,
            hidden.data_ptr(),
            len(hidden),
            numbers.ctypes.data,
            len(spans),
            blocks.ctypes.data,
            self._threads,
        )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        padded = packed_size_bytes(self._vocab_size, 1, torch.uint8)
        logits = torch.empty((len(hidden), padded), dtype=torch.float32)
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
