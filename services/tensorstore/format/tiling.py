"""How each tensor is cut for tensor parallelism: of the families that are known, one by one.

A tensor is cut along one axis into whole units (query heads, key-value heads, rows of the
feed-forward layer, rows of the vocabulary) or is held whole by every rank. Tensors cut along
their first axis are stored row by row; those cut along the second (row-parallel) are stored
transposed. Either way a rank's slice is one contiguous range of bytes. Of all other models every
tensor is kept whole: whoever computes with it cuts it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from services.common.errors import InvalidArgument
from services.model.outline import ModelOutline
from services.model.tensor_parallel import (
    HEADS,
    INTERMEDIATE,
    KV_HEADS,
    VOCABULARY,
    TensorParallel,
)
from services.model.tensors import EMBEDDING, FINAL_NORM, LM_HEAD
from services.model.whole import layer_of

_PARTS: dict[str, tuple[str | None, int]] = {
    "input_layernorm": (None, 0),
    "self_attn.q_proj": (HEADS, 0),
    "self_attn.k_proj": (KV_HEADS, 0),
    "self_attn.v_proj": (KV_HEADS, 0),
    "self_attn.q_norm": (None, 0),
    "self_attn.k_norm": (None, 0),
    "self_attn.o_proj": (HEADS, 1),
    "post_attention_layernorm": (None, 0),
    "pre_feedforward_layernorm": (None, 0),
    "mlp.gate_proj": (INTERMEDIATE, 0),
    "mlp.up_proj": (INTERMEDIATE, 0),
    "mlp.down_proj": (INTERMEDIATE, 1),
    "post_feedforward_layernorm": (None, 0),
}
_ORDER = {part: position for position, part in enumerate(_PARTS)}
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z_.]+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True)
class Placement:
    """Where a tensor belongs: a layer, or before or behind all layers, and how it is cut."""

    layer: int  # -1 embedding, number of layers for the final norm and lm_head
    order: int  # among the tensors of its layer
    unit: str | None  # None: every rank holds it whole
    axis: int  # 0 or 1; 1 is stored transposed


@dataclass(frozen=True)
class Tiling(TensorParallel):
    """What a stored model's tensors are cut by."""

    layers: int

    @classmethod
    def of_outline(cls, outline: ModelOutline) -> Tiling:
        """How a model of these sizes is cut, or would be where its tensors are kept whole."""
        return cls(**asdict(outline.tensor_parallel), layers=outline.layer_count)


def place(name: str, layers: int) -> Placement:
    """Where a tensor of this name belongs; raises InvalidArgument for an unknown one."""
    if name == EMBEDDING:
        return Placement(-1, 0, VOCABULARY, 0)
    if name == FINAL_NORM:
        return Placement(layers, 0, None, 0)
    if name == LM_HEAD:
        return Placement(layers, 1, VOCABULARY, 0)
    match = _LAYER.fullmatch(name) if len(name) <= 128 else None
    if match is not None and match[2] in _PARTS and int(match[1]) < layers:
        unit, axis = _PARTS[match[2]]
        order = _ORDER[match[2]] * 2
        if match[3] == "bias":
            if axis == 1:  # added once, after the ranks' sum
                return Placement(int(match[1]), order + 1, None, 0)
            return Placement(int(match[1]), order + 1, unit, 0)
        return Placement(int(match[1]), order, unit, axis)
    raise InvalidArgument(
        f"tensor {ascii(name)[:120]} is not part of a model of {layers} layers",
        field="tensor",
    )


def place_whole(name: str, layers: int) -> Placement:
    """Where a tensor that is kept whole belongs, whatever its name."""
    return Placement(layer_of(name, layers), 0, None, 0)
