"""A model's config, read from a Hugging Face `config.json` as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.model.families import ModelFamily, family_of
from services.model.fields import NUMBER_LIMIT, flag, refuse, size
from services.model.rope import Rope, parse_rope
from services.model.tensor_parallel import TensorParallel

MAX_LAYERS = 1024
MAX_HEAD_DIM = 4096
_FULL = ("full_attention", "attention")
_SLIDING = "sliding_attention"
_SILU = ("silu", "swish")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """GQA + SwiGLU + RoPE + RMSNorm; with or without norms on queries and keys, biases, windows."""

    hidden_size: int
    intermediate_size: int
    layer_count: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    """Positions a sequence may have, prompt and output together."""
    rms_norm_eps: float
    rope: Rope
    qk_norm: bool
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()
    """Positions that each layer looks back on, its own included; 0: all. Empty: all layers 0."""

    def window(self, layer: int) -> int:
        """A layer's window in positions; 0 where it has none."""
        return self.windows[layer] if self.windows else 0

    @property
    def tensor_parallel(self) -> TensorParallel:
        """What is cut for tensor parallelism."""
        return TensorParallel(self.heads, self.kv_heads, self.intermediate_size, self.vocab_size)


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`; InvalidArgument names the first field that cannot be followed."""
    family = family_of(config)
    values = family.values(config)
    if values["hidden_act"] not in _SILU:
        raise refuse("hidden_act", "must be silu")
    if values.get("hidden_activation") not in (None, *_SILU):
        raise refuse("hidden_activation", "must be silu, as hidden_act")
    hidden_size, heads = size(values, "hidden_size"), size(values, "num_attention_heads")
    kv_heads = _kv_heads(values, family, heads)
    head_dim = _head_dim(values, family, hidden_size, heads)
    layer_count = size(values, "num_hidden_layers", MAX_LAYERS)
    vocab_size = size(values, "vocab_size")
    if not -vocab_size <= (values["pad_token_id"] or 0) < vocab_size:
        raise refuse("pad_token_id", "lies outside the vocabulary")
    positions = size(values, "max_position_embeddings")
    rope = parse_rope(config, head_dim, positions)
    context_length = min(positions, rope.position_limit or positions)
    attention_bias = "attention_bias" in family.defaults and flag(values, "attention_bias")
    return ModelConfig(
        hidden_size=hidden_size,
        intermediate_size=size(values, "intermediate_size"),
        layer_count=layer_count,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=context_length,
        rms_norm_eps=_epsilon(values),
        rope=rope,
        qk_norm=family.qk_norm,
        tied_embeddings=flag(values, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias="mlp_bias" in family.defaults and flag(values, "mlp_bias"),
        windows=_windows(values, family, layer_count, context_length),
    )


def _kv_heads(values: Mapping[str, Any], family: ModelFamily, heads: int) -> int:
    field = "num_key_value_heads"
    if values[field] is None and field in family.nullable:
        return heads
    kv_heads = size(values, field)
    if heads % kv_heads:
        raise refuse(field, f"must divide the {heads} attention heads")
    return kv_heads


def _head_dim(values: Mapping[str, Any], family: ModelFamily, hidden_size: int, heads: int) -> int:
    if family.heads_divide_hidden and hidden_size % heads:
        raise refuse("hidden_size", f"must be a multiple of the {heads} attention heads")
    absent = "head_dim" not in values or (
        values["head_dim"] is None and "head_dim" in family.nullable
    )
    head_dim = hidden_size // heads if absent else values["head_dim"]
    head_dim = size({"head_dim": head_dim}, "head_dim", MAX_HEAD_DIM)
    if head_dim % 2:
        raise refuse("head_dim", f"must be even to be rotated, is {head_dim}")
    return head_dim


def _epsilon(values: Mapping[str, Any]) -> float:
    value = values["rms_norm_eps"]
    if type(value) is not float or not 0 < value < NUMBER_LIMIT:
        raise refuse("rms_norm_eps", "must be a positive number with a point")
    return value


def _windows(
    values: Mapping[str, Any], family: ModelFamily, layer_count: int, context_length: int
) -> tuple[int, ...]:
    """Empty where no layer's window is shorter than the context."""
    window = None
    knows = "sliding_window" in family.defaults
    if knows and (not family.layerwise_window or flag(values, "use_sliding_window")):
        window = None if values["sliding_window"] is None else size(values, "sliding_window")
    slides = _sliding_layers(values, family, layer_count, windowed=window is not None)
    if window is None or window >= context_length:
        return ()
    return tuple(window if sliding else 0 for sliding in slides) if any(slides) else ()


def _sliding_layers(
    values: Mapping[str, Any], family: ModelFamily, layer_count: int, *, windowed: bool
) -> list[bool]:
    kinds = values.get("layer_types")
    if family.layerwise_window:
        first = values["max_window_layers"]
        if type(first) is not int:
            raise refuse("max_window_layers", "must be an integer")
        if kinds is None:
            return [windowed and layer >= first for layer in range(layer_count)]
    elif kinds is None:
        return [windowed] * layer_count
    known = (*_FULL, _SLIDING) if family.layerwise_window else _FULL
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise refuse("layer_types", f"must be a list of {', '.join(known)}")
    if len(kinds) != layer_count:
        raise refuse("layer_types", f"must have {layer_count} entries, one a layer")
    if not family.layerwise_window:
        return [windowed] * layer_count
    if _SLIDING in kinds and not windowed:
        raise refuse("sliding_window", "a sliding layer needs one")
    return [kind == _SLIDING for kind in kinds]
