"""The tensors of a stage: their names and shapes, and their packed form for the kernels."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.common.errors import InvalidArgument
from services.model.config import ModelConfig

COLUMNS = 32
"""Outputs in one column block of a packed weight."""
ALIGNMENT_BYTES = 64
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's tensors, [out, in] as in the checkpoint."""

    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def layer_shapes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Field of LayerWeights to the tensor's name within its layer, and its shape."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.heads * head_dim, config.kv_heads * head_dim
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "input_norm": ("input_layernorm", (hidden,)),
        "post_norm": ("post_attention_layernorm", (hidden,)),
        "q": ("self_attn.q_proj", (queries, hidden)),
        "k": ("self_attn.k_proj", (keys, hidden)),
        "v": ("self_attn.v_proj", (keys, hidden)),
        "output": ("self_attn.o_proj", (hidden, queries)),
        "gate": ("mlp.gate_proj", (inner, hidden)),
        "up": ("mlp.up_proj", (inner, hidden)),
        "down": ("mlp.down_proj", (hidden, inner)),
    }
    if config.qk_norm:
        shapes["q_norm"] = ("self_attn.q_norm", (head_dim,))
        shapes["k_norm"] = ("self_attn.k_norm", (head_dim,))
    return shapes


def stage_shapes(config: ModelConfig, layers: range) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a stage needs, and none besides."""
    matrix = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {}
    if layers.start == 0:
        shapes[EMBEDDING] = matrix
    for layer in layers:
        for name, shape in layer_shapes(config).values():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    if layers.stop == config.layer_count:
        shapes[FINAL_NORM] = (config.hidden_size,)
        shapes[EMBEDDING if config.tied_embeddings else HEAD] = matrix
    return shapes


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
    """One layer's tensors; matrices in `dtype`, norms in fp32."""
    found: dict[str, Tensor | None] = {"q_norm": None, "k_norm": None}
    for field, (name, shape) in layer_shapes(config).items():
        tensor = tensors[f"model.layers.{layer}.{name}.weight"]
        found[field] = tensor.to(torch.float32 if len(shape) == 1 else dtype)
    return LayerWeights(**found)  # type: ignore[arg-type]


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up [n, k] as one matrix [2 n, k] in which sixteen rows of either alternate."""
    n, k = gate.shape
    return torch.stack((gate.view(n // 16, 16, k), up.view(n // 16, 16, k)), 1).view(2 * n, k)


def packed_size_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes of the packed form of a matrix [rows, columns]."""
    return (rows + COLUMNS - 1) // COLUMNS * COLUMNS * columns * dtype.itemsize


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
    """Zeroed memory in large pages, handed out once, front to back; committed as it is touched."""

    def __init__(self, size_bytes: int) -> None:
        memory = mmap.mmap(-1, size_bytes + ALIGNMENT_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._used = -self._bytes.data_ptr() % ALIGNMENT_BYTES

    def take(self, size_bytes: int) -> Tensor:
        """The next `size_bytes`, uint8, aligned."""
        taken = self._bytes[self._used : self._used + size_bytes]
        self._used += self.rounded(size_bytes)
        return taken

    @staticmethod
    def rounded(size_bytes: int) -> int:
        """What `take` uses up."""
        return (size_bytes + ALIGNMENT_BYTES - 1) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
