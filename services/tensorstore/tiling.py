"""How each tensor of the Llama family is cut for tensor parallelism.

A tensor is cut along one axis into whole units (query heads, key-value heads, rows of the
feed-forward layer, rows of the vocabulary) or is held whole by every rank. Tensors cut along
their first axis are stored row by row; those cut along the second (row-parallel) are stored
transposed. Either way a rank's slice is one contiguous range of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument

HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = "heads", "kv_heads", "intermediate", "vocabulary"
UNITS = (HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY)
MAX_TP_DEGREE = 8
MAX_LAYERS = 1024
MAX_UNITS = 1 << 24
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"

_PARTS: dict[str, tuple[str | None, int]] = {
    "input_layernorm": (None, 0),
    "self_attn.q_proj": (HEADS, 0),
    "self_attn.k_proj": (KV_HEADS, 0),
    "self_attn.v_proj": (KV_HEADS, 0),
    "self_attn.q_norm": (None, 0),
    "self_attn.k_norm": (None, 0),
    "self_attn.o_proj": (HEADS, 1),
    "post_attention_layernorm": (None, 0),
    "mlp.gate_proj": (INTERMEDIATE, 0),
    "mlp.up_proj": (INTERMEDIATE, 0),
    "mlp.down_proj": (INTERMEDIATE, 1),
}
_ORDER = {part: position for position, part in enumerate(_PARTS)}
QUANTISED = ("_scale", "_scale_inv", "_zero_point", ".scales", ".qweight", ".qzeros", ".g_idx")
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z_.]+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True)
class Placement:
    """Where a tensor belongs: a layer, or before or behind all layers, and how it is cut."""

    layer: int  # -1 embedding, number of layers for the final norm and lm_head
    order: int  # among the tensors of its layer
    unit: str | None  # None: every rank holds it whole
    axis: int  # 0 or 1; 1 is stored transposed


@dataclass(frozen=True)
class Tiling:
    """Numbers that decide which TP degrees a model can be served at."""

    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Tiling:
        """Reads a Hugging Face config; raises InvalidArgument naming the field that is wrong."""
        heads = _count(config, "num_attention_heads", MAX_UNITS)
        has_kv = config.get("num_key_value_heads") is not None
        kv_heads = _count(config, "num_key_value_heads", MAX_UNITS) if has_kv else heads
        if heads % kv_heads:
            raise InvalidArgument(
                f"{heads} attention heads are not a multiple of {kv_heads} key-value heads",
                field="num_key_value_heads",
            )
        return cls(
            layers=_count(config, "num_hidden_layers", MAX_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            intermediate=_count(config, "intermediate_size", MAX_UNITS),
            vocabulary=_count(config, "vocab_size", MAX_UNITS),
        )

    def units(self, kind: str) -> int:
        """How many indivisible units a kind of tensor has."""
        return int(getattr(self, kind))

    def check_degree(self, degree: int, rank: int = 0) -> None:
        """Raises InvalidArgument unless every tensor divides by the degree and the rank exists."""
        if not 1 <= degree <= self.heads:
            raise InvalidArgument(
                f"TP degree {degree} is not between 1 and the model's {self.heads} attention heads",
                field="tp_degree",
            )
        for kind, words in _DIVIDED.items():
            if self.units(kind) % degree:
                raise InvalidArgument(
                    f"TP degree {degree} does not divide the model's {self.units(kind)} {words}",
                    field="tp_degree",
                )
        if self.kv_heads % degree and degree % self.kv_heads:
            raise InvalidArgument(
                f"TP degree {degree} neither divides the model's {self.kv_heads} key-value heads"
                " nor is a multiple of them",
                field="tp_degree",
            )
        if not 0 <= rank < degree:
            raise InvalidArgument(f"rank {rank} is not in 0..{degree - 1}", field="tp_rank")

    def degrees(self) -> tuple[int, ...]:
        """The degrees up to the tile count that this model can be served at."""
        possible = []
        for degree in range(1, MAX_TP_DEGREE + 1):
            try:
                self.check_degree(degree)
            except InvalidArgument:
                continue
            possible.append(degree)
        return tuple(possible)

    def unit_range(self, kind: str, degree: int, rank: int) -> tuple[int, int]:
        """The half-open range of units that one rank holds; the degree was checked before."""
        units = self.units(kind)
        if units % degree == 0:
            share = units // degree
            return rank * share, (rank + 1) * share
        first = rank * units // degree  # fewer key-value heads than ranks: each is held by several
        return first, first + 1

    def cuts(self, kind: str) -> tuple[int, ...]:
        """Every unit at which some rank's slice begins or ends, first and last included."""
        found = {0, self.units(kind)}
        for degree in self.degrees():
            for rank in range(degree):
                found.update(self.unit_range(kind, degree, rank))
        return tuple(sorted(found))


_DIVIDED = {
    HEADS: "attention heads",
    INTERMEDIATE: "feed-forward rows (intermediate_size)",
    VOCABULARY: "rows of vocabulary",
}


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
    if name.endswith(QUANTISED):
        raise InvalidArgument(
            f"tensor {ascii(name)[:120]} belongs to a quantised checkpoint, and weights that need"
            " scales or zero points are not kept",
            field="tensor",
        )
    raise InvalidArgument(
        f"tensor {ascii(name)[:120]} is not part of a Llama, Qwen3 or Mistral model"
        f" of {layers} layers",
        field="tensor",
    )


def _count(config: Mapping[str, Any], key: str, limit: int) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise InvalidArgument(f"{key} must be an integer from 1 to {limit}", field=key)
    return value
