"""The layers of a stage in plain torch, on CPU where there is no compiler.

Every row is computed in shapes that follow from its own position alone: attention row by row,
linears in pieces of K for which oneDNN gives equal bits for any number of rows. Where it does not,
which is tried for each shape, they too go row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from services.engine.backend import BLOCK_SIZE
from services.engine.native.rope import rope_table
from services.engine.native.weights import (
    LayerWeights,
    embedding_matrix,
    final_norm,
    layer_weights,
)
from services.engine.stage.spans import Span
from services.model.config import ModelConfig
from services.model.rope import Rope
from services.model.tensors import EMBEDDING, LM_HEAD

PIECE = 1024
"""Up to this K a oneDNN linear sums in one order for any number of rows."""
ROWS = "native-rows"
"""Of a head its keys position by position, then its values."""
VECTORS = 64
"""A multiple of the elements that torch's elementwise loops take at once."""
PROBED_ROWS = (1, 2, 5, 8, 12, 15, 16, 17, 31, 32, 33, 64, 128)
"""Where kernels of oneDNN take turns."""


class Linear:
    """x [rows, in] to [rows, out]; each row's result is its own."""

    _probed: dict[tuple[int, int, torch.dtype, int], bool] = {}  # noqa: RUF012

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._pieces: list[tuple[slice, Any]] = []
        self._by_row = False
        self.packed_bytes = weight.numel() * weight.element_size()
        self._weight: Tensor | None = weight.clone(memory_format=torch.contiguous_format)
        key = (*weight.shape, weight.dtype, torch.get_num_threads())
        if key not in Linear._probed:
            Linear._probed[key] = self._rows_agree(weight)
        if Linear._probed[key]:
            self._weight, self._pieces = None, _prepack(weight)
        else:
            self._by_row = True

    def _rows_agree(self, weight: Tensor) -> bool:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn((max(PROBED_ROWS), weight.shape[1]), generator=generator).to(weight.dtype)
        try:
            self._pieces = _prepack(weight)
            whole = self._packed(x)
            return all(torch.equal(whole[:rows], self._packed(x[:rows])) for rows in PROBED_ROWS)
        except (RuntimeError, AttributeError):  # private operators that a build may lack
            return False

    def _packed(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for part, packed in self._pieces:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x[:, part].contiguous(), packed, None, "none", [], ""
            )
            total = y if total is None else total + y
        assert total is not None
        return total

    def __call__(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return y if self._bias is None else y + self._bias

    def _product(self, x: Tensor) -> Tensor:
        if self._weight is None:
            return self._packed(x)
        if self._by_row:
            weight = self._weight
            return torch.cat([F.linear(x[i : i + 1], weight) for i in range(len(x))])
        return F.linear(x, self._weight)


def _prepack(weight: Tensor) -> list[tuple[slice, Any]]:
    """Slices of K with oneDNN's own form of their weights."""
    pieces = []
    for start in range(0, weight.shape[1], PIECE):
        part = slice(start, min(start + PIECE, weight.shape[1]))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight[:, part].contiguous())
        pieces.append((part, packed))
    return pieces


class Multiplication(Protocol):
    """A matrix, in the form in which rows are multiplied by it."""

    packed_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in] to [rows, out]."""
        ...


M_co = TypeVar("M_co", bound=Multiplication, covariant=True)


class TorchLayer(Generic[M_co]):
    """One layer's tensors on a device, its matrices as `matrix` makes them of weight and bias."""

    def __init__(
        self,
        weights: LayerWeights,
        window: int,
        rope: Rope | None,
        matrix: Callable[[Tensor, Tensor | None], M_co],
        device: torch.device,
    ) -> None:
        def linear(weight: Tensor, bias: Tensor | None) -> M_co:
            added = None if bias is None else bias.to(device, weight.dtype, copy=True)
            return matrix(weight, added)

        def norm(weight: Tensor | None) -> Tensor | None:
            return None if weight is None else weight.to(device, copy=True)

        self.window, self.rope = window, rope
        self.q = linear(weights.q, weights.q_bias)
        self.k = linear(weights.k, weights.k_bias)
        self.v = linear(weights.v, weights.v_bias)
        self.output = linear(weights.output, weights.output_bias)
        self.gate = linear(weights.gate, weights.gate_bias)
        self.up = linear(weights.up, weights.up_bias)
        self.down = linear(weights.down, weights.down_bias)
        self.input_norm, self.mlp_norm = norm(weights.input_norm), norm(weights.mlp_norm)
        self.attention_post_norm = norm(weights.attention_post_norm)
        self.mlp_post_norm = norm(weights.mlp_post_norm)
        self.q_norm, self.k_norm = norm(weights.q_norm), norm(weights.k_norm)

    @property
    def packed_bytes(self) -> int:
        linears = (self.q, self.k, self.v, self.output, self.gate, self.up, self.down)
        return sum(linear.packed_bytes for linear in linears)


@dataclass(frozen=True, slots=True)
class TorchHead(Generic[M_co]):
    """The final norm and the head."""

    norm: Tensor
    matrix: M_co

    @property
    def packed_bytes(self) -> int:
        return self.matrix.packed_bytes


class TorchPacking:
    """Implements Packing."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.kv_form, self.kv_head_bytes = ROWS, 2 * config.head_dim * BLOCK_SIZE * dtype.itemsize
        self._config, self._dtype = config, dtype
        kind = "bf16" if dtype == torch.bfloat16 else "fp32"
        where = torch.backends.cpu.get_cpu_capability().lower()
        where = "".join(c for c in where if c.isalnum())
        version = torch.__version__.partition("+")[0]
        self.name = f"cpu-{kind}-torch{version}-{where}-{torch.get_num_threads()}t"

    def layer(self, tensors: Mapping[str, Tensor], layer: int) -> TorchLayer[Linear]:
        weights = layer_weights(self._config, tensors, layer, self._dtype)
        config, device = self._config, torch.device("cpu")
        return TorchLayer(weights, config.window(layer), config.rope_of(layer), Linear, device)

    def embedding(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return embedding_matrix(self._config, tensors, self._dtype)

    def head(self, tensors: Mapping[str, Tensor]) -> TorchHead[Linear]:
        head = tensors[EMBEDDING if self._config.tied_embeddings else LM_HEAD].to(self._dtype)
        return TorchHead(final_norm(self._config, tensors), Linear(head))

    def arithmetic(
        self,
        layers: Sequence[TorchLayer[Linear]],
        head: TorchHead[Linear] | None,
        kv_blocks: int,
    ) -> TorchLayers:
        return TorchLayers(self._config, layers, head, self._dtype, kv_blocks)


class TorchLayers:
    """Implements Arithmetic."""

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[TorchLayer[Linear]],
        head: TorchHead[Linear] | None,
        dtype: torch.dtype,
        kv_blocks: int,
    ) -> None:
        self._config, self._dtype = config, dtype
        self._layers, self._head = layers, head
        positions = min(config.context_length, kv_blocks * BLOCK_SIZE)
        self._ropes = {
            rope: rope_table(rope, positions, config.head_dim)
            for rope in {layer.rope for layer in layers}
        }
        shape = (len(layers), 2, kv_blocks, BLOCK_SIZE, config.kv_heads, config.head_dim)
        self._cache = torch.zeros(shape, dtype=dtype)

    @torch.inference_mode()
    def forward(
        self, hidden: Tensor, spans: Sequence[Span], asked: Sequence[int] | None = None
    ) -> Tensor:
        config = self._config
        positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in spans])
        where = torch.cat([_cells(span) for span in spans])
        ropes = {rope: table[positions] for rope, table in self._ropes.items()}
        for index, layer in enumerate(self._layers):
            normed = self._normalize(hidden, layer.input_norm)
            rope = ropes[layer.rope]
            q = self._heads(layer.q(normed), layer.q_norm, rope, config.heads)
            k = self._heads(layer.k(normed), layer.k_norm, rope, config.kv_heads)
            v = layer.v(normed).view(len(hidden), config.kv_heads, config.head_dim)
            cache = self._cache[index].view(2, -1, config.kv_heads, config.head_dim)
            cache[0, where] = k
            cache[1, where] = v
            mixed = torch.cat([self._attend(q, cache, span, layer.window) for span in spans])
            hidden = self._added(hidden, layer.output(mixed), layer.attention_post_norm)
            normed = self._normalize(hidden, layer.mlp_norm)
            gated = self._activated(layer.gate(normed)) * layer.up(normed)
            hidden = self._added(hidden, layer.down(gated), layer.mlp_post_norm)
        return kept(hidden, asked)

    def _added(self, hidden: Tensor, update: Tensor, norm: Tensor | None) -> Tensor:
        return hidden + self._normalize(update, norm) * self._config.residual_scale

    def _activated(self, gate: Tensor) -> Tensor:
        if self._config.activation == "silu":
            return in_whole_vectors(F.silu, gate)
        return in_whole_vectors(gelu, gate)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        assert self._head is not None
        normed = self._normalize(hidden, self._head.norm)
        return scaled_logits(self._config, self._head.matrix(normed).float())

    def export_blocks(self, blocks: Tensor) -> Tensor:
        held = self._cache[:, :, blocks].permute(2, 0, 4, 1, 3, 5)
        return as_bytes(held)

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        layers, heads = len(self._layers), self._config.kv_heads
        shape = (len(blocks), layers, heads, 2, BLOCK_SIZE, self._config.head_dim)
        held = data.contiguous().view(self._dtype).view(shape)
        self._cache[:, :, blocks] = held.permute(1, 3, 0, 4, 2, 5)

    def close(self) -> None:
        self._layers, self._head = (), None
        self._cache = self._cache.new_empty(0)

    def _normalize(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._config.rms_norm_eps)
        return (wide * scale * weight).to(self._dtype)

    def _heads(self, x: Tensor, norm: Tensor | None, rope: Tensor, heads: int) -> Tensor:
        """[rows, heads * head_dim], normed and rotated, as [rows, heads, head_dim]."""
        x = self._normalize(x, norm) if self._config.whole_qk_norm else x
        per_head = None if self._config.whole_qk_norm else norm
        shaped = self._normalize(x.view(len(x), heads, -1), per_head).float()
        cosine, sine = rope[:, None].chunk(2, -1)
        first, second = shaped.chunk(2, -1)
        rotated = (first * cosine - second * sine, second * cosine + first * sine)
        return torch.cat(rotated, -1).to(self._dtype)

    def _attend(self, q: Tensor, cache: Tensor, span: Span, window: int) -> Tensor:
        """Rows of one span over their contexts: [count, heads * head_dim]."""
        config, end = self._config, span.start + span.count
        cells = _cells(Span(0, end, 0, span.table))
        keys, values = cache[:, cells].transpose(1, 2)  # [kv_heads, end, head_dim]
        group = config.heads // config.kv_heads
        queries = q[span.first : span.first + span.count]
        queries = queries.view(span.count, config.kv_heads, group, -1)
        mixed_rows = []
        for row in range(span.count):
            context = span.start + row + 1
            first = max(0, context - window) if window else 0
            k = keys[:, first:context].float().contiguous()
            v = values[:, first:context].float().contiguous()
            scores = torch.bmm(queries[row].float(), k.transpose(1, 2)) * config.score_scale
            if (cap := config.attention_cap) is not None:
                scores = (scores / cap).tanh() * cap
            mixed_rows.append(torch.bmm(scores.softmax(-1), v).view(1, -1))
        return torch.cat(mixed_rows).to(self._dtype)


def kept(hidden: Tensor, asked: Sequence[int] | None) -> Tensor:
    """The rows that are asked for; all without a word."""
    return hidden if asked is None or len(asked) == len(hidden) else hidden[list(asked)]


def as_bytes(held: Tensor) -> Tensor:
    """[blocks, layers, heads, 2, positions, width] as uint8 [blocks, layers, heads, bytes]."""
    return held.contiguous().view(torch.uint8).flatten(3)


def in_whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each element of [rows, width]; torch computes what is left over at the end of
    a tensor otherwise."""
    width = x.shape[1]
    return function(F.pad(x, (0, -width % VECTORS)))[:, :width].contiguous()


def gelu(x: Tensor) -> Tensor:
    """Its approximation by tanh."""
    return F.gelu(x, approximate="tanh")


def scaled_logits(config: ModelConfig, logits: Tensor) -> Tensor:
    """Logits, fp32 on the CPU, divided and capped as the model says."""
    if config.logits_divisor != 1.0:
        logits = logits / config.logits_divisor
    if (cap := config.logits_cap) is not None:
        logits = in_whole_vectors(lambda x: (x / cap).tanh() * cap, logits)
    return logits


def _cells(span: Span) -> Tensor:
    """Where each row of a span lies in a cache whose blocks are joined: int64 [count]."""
    positions = torch.arange(span.start, span.start + span.count)
    table = torch.tensor(list(span.table), dtype=torch.int64)
    return table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
