"""The layers of a stage on a GPU, in torch.

Every row's result is its own, as on CPU, but here by choosing what runs: products of numbers of
rows that were found to agree (see products), and kernels for norms and attention that know no
other row. Attention takes a block of positions after another from the first one on, so positions
that a row does not see, before its window or behind it, change no bit: sequences of about one
length attend together. For the same reason a step of decoding can be made of more rows and more
positions than there are, and so be recorded once for many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.common.errors import InvalidArgument
from services.engine.backend import BLOCK_SIZE
from services.engine.native.padding import whole_lanes
from services.engine.native.products import Product, agreeing_sizes, padded_rows
from services.engine.native.recorder import Recorder
from services.engine.native.rope import rope_table
from services.engine.native.torch_layers import (
    ROWS,
    TorchHead,
    TorchLayer,
    as_bytes,
    gelu,
    kept,
    scaled_logits,
)
from services.engine.native.weights import embedding_matrix, final_norm, layer_weights
from services.engine.stage.spans import Span
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, LM_HEAD

FEWEST_BLOCKS = 8
"""Of the shortest context that is computed with."""
MOST_RECORDED = 1 << 16
"""Positions of all rows of a step that is recorded: beyond, the GPU is longer about it than the
host, and rows of other lengths cost more than they save."""
FEW_ROWS = 16
"""Of one sequence in a step, a token and guesses behind it, that run as rows of their own: all keys
and values of a step are in the cache before any row looks at them."""
FEWEST_ROWS = {torch.bfloat16: 256, torch.float32: 16}
"""That are computed: with sums in one order a few bf16 rows occupy a small part of the GPU, and
256 take a third of their time. In fp32 more rows take longer."""
ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The first one is the one that keeps rows apart; the self-test sees where it cannot be had."""


class CudaPacking:
    """Implements Packing."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str) -> None:
        if config.attention_cap is not None:
            raise InvalidArgument(
                "attn_logit_softcapping: scores are not capped on a GPU", field="device"
            )
        width = whole_lanes(config.head_dim)
        self.kv_form, self.kv_head_bytes = ROWS, 2 * width * BLOCK_SIZE * dtype.itemsize
        self._config, self._dtype, self._device = config, dtype, torch.device(device)
        _sum_in_one_order()
        card = "".join(c for c in torch.cuda.get_device_name(self._device).lower() if c.isalnum())
        kind = "bf16" if dtype == torch.bfloat16 else "fp32"
        version = torch.__version__.partition("+")[0]
        self.name = f"cuda-{kind}-torch{version}-cuda{torch.version.cuda}-{card}"
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def layer(self, tensors: Mapping[str, Tensor], layer: int) -> TorchLayer[Product]:
        weights = layer_weights(self._config, tensors, layer, self._dtype)
        config, device = self._config, self._device
        return TorchLayer(
            weights, config.window(layer), config.rope_of(layer), self.product, device
        )

    def embedding(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return embedding_matrix(self._config, tensors, self._dtype, self._device)

    def head(self, tensors: Mapping[str, Tensor]) -> TorchHead[Product]:
        head = tensors[EMBEDDING if self._config.tied_embeddings else LM_HEAD].to(self._dtype)
        norm = final_norm(self._config, tensors).to(self._device)
        return TorchHead(norm, self.product(head, None))

    def arithmetic(
        self,
        layers: Sequence[TorchLayer[Product]],
        head: TorchHead[Product] | None,
        kv_blocks: int,
    ) -> CudaLayers:
        return CudaLayers(self._config, layers, head, self._dtype, kv_blocks, self._device)

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """In sizes that agree; all weights of a shape are multiplied in the same."""
        weight = weight.to(self._device)
        key = (*weight.shape, *weight.stride())
        if key not in self._sizes:
            self._sizes[key] = agreeing_sizes(weight)
        return Product(weight, bias, self._sizes[key])


@dataclass(frozen=True, slots=True)
class _Together:
    """Spans of equally many rows, over equally many positions."""

    rows: Tensor | slice
    """Of the batch: int64 [spans * count]."""
    own: Tensor
    """Positions of the rows: int64 [spans, count]."""
    cells: Tensor
    """Where each position lies in the cache: int64 [spans, positions]."""
    seen: Mapping[int, Tensor]
    """By window, 0 or -inf: [spans, 1, count * group, positions]."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of decoding."""

    hidden: Tensor
    plan: Tensor
    run: Callable[[], Tensor]


class CudaLayers:
    """Implements Arithmetic."""

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[TorchLayer[Product]],
        head: TorchHead[Product] | None,
        dtype: torch.dtype,
        kv_blocks: int,
        device: torch.device,
    ) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._layers, self._head = layers, head
        positions = min(config.context_length, kv_blocks * BLOCK_SIZE)
        self._ropes = {
            rope: _both_halves(rope_table(rope, positions, config.head_dim)).to(device)
            for rope in {layer.rope for layer in layers}
        }
        self._width = whole_lanes(config.head_dim)
        self._nowhere, self._spilled = kv_blocks, kv_blocks + 1
        """Blocks of zeros for positions that a sequence has not, and for rows that are none."""
        shape = (len(layers), (kv_blocks + 2) * BLOCK_SIZE, 2, config.kv_heads, self._width)
        self._cache = torch.zeros(shape, dtype=dtype, device=device)
        self._recorder = Recorder(device)
        self._recorded: dict[tuple[int, int], _Step] = {}

    @torch.inference_mode()
    def forward(
        self, hidden: Tensor, spans: Sequence[Span], asked: Sequence[int] | None = None
    ) -> Tensor:
        rows, blocks = padded_rows(len(hidden)), max(map(_blocks, spans))
        few = max(span.count for span in spans) <= FEW_ROWS
        if few and rows * blocks * BLOCK_SIZE <= MOST_RECORDED:
            return kept(self._decoded(hidden, _singly(spans), rows, blocks), asked)
        by_shape: dict[tuple[int, int], list[Span]] = {}
        for span in spans:
            by_shape.setdefault((span.count, _blocks(span)), []).append(span)
        groups = []
        for (count, blocks), alike in by_shape.items():
            plan = torch.from_numpy(self._plan(alike, len(alike), blocks)).to(self._device)
            groups.append(self._together(_rows(alike, self._device), count, plan))
        return kept(self._through(self._widened(hidden), len(hidden), groups), asked)

    def _decoded(self, hidden: Tensor, spans: Sequence[Span], rows: int, blocks: int) -> Tensor:
        step = self._recorded.get((rows, blocks))
        if step is None:
            step = self._recorded[rows, blocks] = self._step(rows, blocks)
        step.hidden[: len(hidden)] = hidden.to(self._device)
        step.plan.copy_(torch.from_numpy(self._plan(spans, rows, blocks)))
        return step.run()[: len(hidden)].clone()

    def _step(self, rows: int, blocks: int) -> _Step:
        shape = (self._padded_rows(rows), self._config.hidden_size)
        hidden = torch.zeros(shape, dtype=self._dtype, device=self._device)
        plan = torch.from_numpy(self._plan((), rows, blocks)).to(self._device)

        def compute() -> Tensor:
            return self._through(hidden, rows, [self._together(slice(rows), 1, plan)])

        return _Step(hidden, plan, self._recorder.record(compute))

    def _through(self, hidden: Tensor, rows: int, groups: Sequence[_Together]) -> Tensor:
        """The first `rows` of [padded rows, hidden_size], through all layers."""
        config = self._config
        heads = [config.heads, config.kv_heads]
        where = torch.empty(rows, dtype=torch.int64, device=self._device)
        positions = torch.empty_like(where)
        for group in groups:
            positions[group.rows] = group.own.flatten()
            where[group.rows] = group.cells.gather(1, group.own).flatten()
        ropes = {rope: table[:, positions, None] for rope, table in self._ropes.items()}
        with sdpa_kernel(ATTENTION):
            for layer, cache in zip(self._layers, self._cache, strict=True):
                normed = self._normalize(hidden, layer.input_norm)
                queries = self._heads(layer.q(normed)[:rows], layer.q_norm)
                keys = self._heads(layer.k(normed)[:rows], layer.k_norm)
                rotated = self._rotated(queries, keys, *ropes[layer.rope])
                q, k = rotated.split_with_sizes(heads, 1)
                v = self._padded(self._heads(layer.v(normed)[:rows], None))
                cache.index_copy_(0, where, torch.stack((k, v), 1))
                mixed = hidden.new_zeros((len(hidden), config.heads * config.head_dim))
                for group in groups:
                    mixed[group.rows] = self._attend(q[group.rows], cache, group, layer.window)
                hidden = self._added(hidden, layer.output(mixed), layer.attention_post_norm)
                normed = self._normalize(hidden, layer.mlp_norm)
                gated = self._activated(layer.gate(normed)) * layer.up(normed)
                hidden = self._added(hidden, layer.down(gated), layer.mlp_post_norm)
        return hidden[:rows]

    def _added(self, hidden: Tensor, update: Tensor, norm: Tensor | None) -> Tensor:
        update = self._normalize(update, norm)
        if self._config.residual_scale != 1.0:
            update = update * self._config.residual_scale
        return hidden + update

    def _activated(self, gate: Tensor) -> Tensor:
        return F.silu(gate) if self._config.activation == "silu" else gelu(gate)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        assert self._head is not None
        normed = self._normalize(self._widened(hidden), self._head.norm)
        logits = self._head.matrix(normed)[: len(hidden)].float()
        return scaled_logits(self._config, _on_host(logits))

    def export_blocks(self, blocks: Tensor) -> Tensor:
        held = self._blocks()[:, blocks.to(self._device)].permute(1, 0, 4, 3, 2, 5)
        return self._pinned_copy(as_bytes(held))

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        layers, heads = len(self._layers), self._config.kv_heads
        shape = (len(blocks), layers, heads, 2, BLOCK_SIZE, self._width)
        there = self._pinned_copy(data).to(self._device)
        held = there.view(self._dtype).view(shape).permute(1, 0, 4, 3, 2, 5)
        self._blocks()[:, blocks.to(self._device)] = held

    def _blocks(self) -> Tensor:
        """[layers, blocks, positions, 2, kv_heads, width]."""
        layers, rows, *rest = self._cache.shape
        return self._cache.view(layers, rows // BLOCK_SIZE, BLOCK_SIZE, *rest)

    def _pinned_copy(self, data: Tensor) -> Tensor:
        """On the host, in memory that the device reads and writes by itself."""
        pinned = torch.empty(data.shape, dtype=data.dtype, pin_memory=self._device.type == "cuda")
        return pinned.copy_(data)

    def close(self) -> None:
        self._layers, self._head = (), None
        self._recorded.clear()
        self._cache = self._cache.new_empty(0)

    def _widened(self, hidden: Tensor) -> Tensor:
        """On the device, with rows of zeros behind."""
        missing = self._padded_rows(len(hidden)) - len(hidden)
        return F.pad(hidden.to(self._device), (0, 0, 0, missing))

    def _padded_rows(self, rows: int) -> int:
        return padded_rows(max(rows, FEWEST_ROWS[self._dtype]))

    def _normalize(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        normed = F.rms_norm(x.float(), (x.shape[-1],), weight, self._config.rms_norm_eps)
        return normed.to(self._dtype)

    def _heads(self, x: Tensor, norm: Tensor | None) -> Tensor:
        """[rows, heads * head_dim] as [rows, heads, head_dim], normed."""
        if self._config.whole_qk_norm:
            x, norm = self._normalize(x, norm), None
        return self._normalize(x.view(len(x), -1, self._config.head_dim), norm)

    def _rotated(self, queries: Tensor, keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Both in one, [rows, heads + kv_heads, width]: there are many small steps to it."""
        x = torch.cat((queries, keys), 1).float()
        rotated = torch.addcmul(x * cosine, x.roll(self._config.head_dim // 2, -1), sine)
        return self._padded(rotated.to(self._dtype))

    def _padded(self, x: Tensor) -> Tensor:
        """Heads in whole lanes."""
        return x if x.shape[-1] == self._width else F.pad(x, (0, self._width - x.shape[-1]))

    def _plan(self, spans: Sequence[Span], rows: int, blocks: int) -> NDArray[np.int64]:
        """Where each span starts, and its blocks: int64 [rows, 1 + blocks]."""
        plan = np.full((rows, 1 + blocks), self._nowhere, dtype=np.int64)
        plan[len(spans) :, :2] = (0, self._spilled)
        for row, span in enumerate(spans):
            used = -(-(span.start + span.count) // BLOCK_SIZE)
            plan[row, 0] = span.start
            plan[row, 1 : 1 + used] = span.table[:used]
        return plan

    def _together(self, rows: Tensor | slice, count: int, plan: Tensor) -> _Together:
        starts, blocks = plan[:, :1], plan[:, 1:, None]
        cells = blocks * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=self._device)
        past = torch.arange(blocks.shape[1] * BLOCK_SIZE, device=self._device)
        cells = cells.flatten(1).where(past < starts + count, self._nowhere * BLOCK_SIZE)
        own = starts + torch.arange(count, device=self._device)
        windows = {layer.window for layer in self._layers}
        seen = {window: self._seen(own, past, window) for window in windows}
        return _Together(rows, own, cells, seen)

    def _seen(self, own: Tensor, past: Tensor, window: int) -> Tensor:
        own = own[:, :, None]
        hidden = past > own
        if window:
            hidden |= past <= own - window
        seen = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        group = self._config.heads // self._config.kv_heads
        return seen.masked_fill_(hidden, -torch.inf).repeat_interleave(group, 1)[:, None]

    def _attend(self, q: Tensor, cache: Tensor, group: _Together, window: int) -> Tensor:
        """Rows [spans * count, heads, width] over their contexts: [.., heads * head_dim]."""
        config, (spans, count) = self._config, group.own.shape
        held = cache.index_select(0, group.cells.flatten()).view(spans, -1, *cache.shape[1:])
        keys, values = held.transpose(1, 3).unbind(2)  # [spans, kv_heads, positions, width]
        queries = q.view(spans, count, config.kv_heads, -1, self._width).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            queries.flatten(2, 3),
            keys,
            values,
            attn_mask=group.seen[window],
            scale=config.score_scale,
        )
        mixed = mixed.reshape(spans, config.kv_heads, count, -1, self._width).transpose(1, 2)
        return mixed[..., : config.head_dim].reshape(len(q), -1)


def _both_halves(table: Tensor) -> Tensor:
    """Cosines, and sines of what a half takes from the other: [2, positions, head_dim]."""
    cosine, sine = table.chunk(2, 1)
    return torch.stack((torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)))


def _sum_in_one_order() -> None:
    """For all bf16 products of the process: none in parts, whose number would follow from that of
    the rows. torch can promise it where cuBLASLt makes them; fp32 is left to what agrees.

    With CUBLASLT_WORKSPACE_SIZE=1 fp32 would agree too, but each product asks ten times as long
    how it is best made.
    """
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)


def _singly(spans: Sequence[Span]) -> list[Span]:
    """Each row as a span of its own."""
    return [
        Span(span.first + row, 1, span.start + row, span.table)
        for span in spans
        for row in range(span.count)
    ]


def _blocks(span: Span) -> int:
    """KV blocks that a span is computed with: a power of two, or half as many again."""
    needed, blocks = -(-(span.start + span.count) // BLOCK_SIZE), FEWEST_BLOCKS
    while blocks < needed:
        if blocks * 3 // 2 >= needed:
            return blocks * 3 // 2
        blocks *= 2
    return blocks


def _rows(spans: Sequence[Span], device: torch.device) -> Tensor | slice:
    """Of spans of equally many rows in a batch; a slice, which costs nothing, where they follow one
    another."""
    first, count = spans[0].first, spans[0].count
    if all(span.first == first + index * count for index, span in enumerate(spans)):
        return slice(first, first + len(spans) * count)
    firsts = torch.tensor([[span.first] for span in spans])
    return (firsts + torch.arange(count)).flatten().to(device)


def _on_host(tensor: Tensor) -> Tensor:
    """By way of memory that the device writes to by itself; torch keeps it for the next time."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor)
