"""The tensors of a stage: their names and shapes, and their packed form for the kernels."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from services.common.errors import InvalidArgument
from services.engine.native.padding import LANES
from services.model.config import ModelConfig
from services.model.tensors import (
    EMBEDDING,
    FINAL_NORM,
    layer_norms,
    layer_shapes,
    stage_shapes,
)

CPU = torch.device("cpu")
COLUMNS = 32
"""Outputs in one column block of a packed weight."""
ALIGNMENT_BYTES = 64
LARGE_PAGE_BYTES = 1 << 21


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's tensors, [out, in] as in the checkpoint; what the model has not is None."""

    input_norm: Tensor | None
    mlp_norm: Tensor | None
    attention_post_norm: Tensor | None
    mlp_post_norm: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    output_bias: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PARTS = {
    **{field: f"{name}.weight" for field, name in _LINEARS.items()},
    **{f"{field}_bias": f"{name}.bias" for field, name in _LINEARS.items()},
}
"""Field of LayerWeights to the tensor's name within its layer."""
_HEADS = ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm")
"""Fields whose rows are elements of heads that are rotated."""


def check_tensors(
    config: ModelConfig, tensors: Mapping[str, Tensor], layers: range
) -> dict[str, int]:
    """Bytes by name of what the stage will hold; a missing or misshapen tensor is refused."""
    sizes: dict[str, int] = {}
    for name, shape in stage_shapes(config, layers).items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InvalidArgument(f"tensor {name} is missing", field=name)
        if tuple(tensor.shape) != shape:
            raise InvalidArgument(
                f"tensor {name} has shape {tuple(tensor.shape)}, expected {shape}", field=name
            )
        if not tensor.dtype.is_floating_point:
            raise InvalidArgument(f"tensor {name} must be floating point", field=name)
        sizes[name] = tensor.numel() * tensor.element_size()
    return sizes


def layer_weights(
    config: ModelConfig, tensors: Mapping[str, Tensor], layer: int, dtype: torch.dtype
) -> LayerWeights:
    """One layer's tensors; matrices in `dtype`, norms and biases in fp32."""
    shapes = layer_shapes(config)
    norms = {field: f"{name}.weight" for field, name in (layer_norms(config) | _HEAD_NORMS).items()}
    found: dict[str, Tensor | None] = {}
    for field in LayerWeights.__dataclass_fields__:
        part = norms.get(field) or _PARTS.get(field)
        if part is None or part not in shapes:
            found[field] = None
            continue
        tensor = tensors[f"model.layers.{layer}.{part}"]
        tensor = tensor.to(torch.float32 if len(shapes[part]) == 1 else dtype)
        if field in norms:
            tensor = tensor + config.norm_offset
        found[field] = _paired(config, tensor) if field in _HEADS else tensor
    return LayerWeights(**found)  # type: ignore[arg-type]


def final_norm(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weights of the last norm, fp32; a copy."""
    return tensors[FINAL_NORM].float() + config.norm_offset


def embedding_matrix(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Tensor:
    """What a row of ids becomes, [vocab, hidden]; a copy, but for one that lies on a GPU already
    and is taken as it is."""
    changed = device == CPU or config.embedding_scale is not None
    matrix = tensors[EMBEDDING].to(device, dtype, copy=changed)
    if config.embedding_scale is None:
        return matrix
    if config.rounded_embedding_scale:
        return matrix.mul_(torch.tensor(config.embedding_scale, dtype=dtype))
    return matrix.mul_(config.embedding_scale)


def _paired(config: ModelConfig, tensor: Tensor) -> Tensor:
    """Elements of heads [heads * head_dim, ...] in an order in which the two halves of a head turn
    against each other: what is not rotated goes to the end of both. A product of queries and keys
    does not know the order."""
    dim, rotated = config.head_dim, config.rope.dim
    if rotated == dim:
        return tensor
    turned, passed = torch.arange(rotated), torch.arange(rotated, dim)
    halves = zip(turned.chunk(2), passed.chunk(2), strict=True)
    order = torch.cat([part for half in halves for part in half])
    heads = tensor.reshape(-1, dim, *tensor.shape[1:])
    return heads[:, order.to(tensor.device)].reshape(tensor.shape)


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up [n, ...] as one [2 n, ...] in which sixteen rows of either alternate."""
    n, *rest = gate.shape
    rows = (n // LANES, LANES, *rest)
    return torch.stack((gate.view(rows), up.view(rows)), 1).view(2 * n, *rest)


def whole_blocks(rows: int) -> int:
    """Rows, rounded up to whole column blocks."""
    return (rows + COLUMNS - 1) // COLUMNS * COLUMNS


def packed_size_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes of the packed form of a matrix [rows, columns]."""
    return whole_blocks(rows) * columns * dtype.itemsize


def pack(weight: Tensor, out: Tensor) -> None:
    """Lay [n, k] out as [n / 32][k / step][32][step], zeros for missing rows, into `out`."""
    n, k = weight.shape
    step = 4 // weight.element_size()
    blocks = (n + COLUMNS - 1) // COLUMNS
    whole = n // COLUMNS
    target = out.view(weight.dtype).view(blocks, k // step, COLUMNS, step)
    target[:whole].copy_(
        weight[: whole * COLUMNS].view(whole, COLUMNS, k // step, step).permute(0, 2, 1, 3)
    )
    if whole < blocks:
        rest = weight[whole * COLUMNS :]
        target[whole].zero_()
        target[whole, :, : len(rest)].copy_(rest.view(len(rest), k // step, step).permute(1, 0, 2))


class Arena:
    """Zeroed memory, handed out once, front to back; committed as it is touched. In large pages,
    where the system has them: weights are read from one end to the other. What does not fill one
    lies in small ones, so that no more memory is taken than was asked for."""

    def __init__(self, size_bytes: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has none as Linux is set up
        memory = mmap.mmap(-1, size_bytes + LARGE_PAGE_BYTES, flags=private)
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._used = -self._bytes.data_ptr() % LARGE_PAGE_BYTES
        filled_bytes = size_bytes // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system that was built without them says so
                if filled_bytes:
                    memory.madvise(mmap.MADV_HUGEPAGE, self._used, filled_bytes)
                memory.madvise(mmap.MADV_NOHUGEPAGE, self._used + filled_bytes)

    def take(self, size_bytes: int) -> Tensor:
        """The next `size_bytes`, uint8, aligned."""
        taken = self._bytes[self._used : self._used + size_bytes]
        self._used += self.rounded(size_bytes)
        return taken

    @staticmethod
    def rounded(size_bytes: int) -> int:
        """What `take` uses up."""
        return (size_bytes + ALIGNMENT_BYTES - 1) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
