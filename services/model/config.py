"""A model's config, read from a Hugging Face `config.json` as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.model import layer_kinds
from services.model.families import Activation, ModelFamily, family_of
from services.model.fields import NUMBER_LIMIT, flag, number, refuse, size
from services.model.rope import Rope, parse_layer_ropes, parse_rope
from services.model.tensor_parallel import TensorParallel

MAX_LAYERS = 1024
MAX_HEAD_DIM = 4096
_ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu_pytorch_tanh",),
}
_CAPS = {
    "attention_cap": "attn_logit_softcapping",
    "logits_cap": "final_logit_softcapping",
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """GQA + gated feed-forward + RoPE + RMSNorm, and what a family has of its own."""

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
    ropes: tuple[Rope | None, ...] = ()
    """What turns each layer's queries and keys; None: nothing does. Empty: `rope`, in all."""
    whole_qk_norm: bool = False
    """The norms on queries and on keys are each of all heads together, not of a head."""
    pre_norms: bool = True
    post_norms: bool = False
    """Norms in front of attention and feed-forward layer, and on what they add to the residual."""
    norm_offset: float = 0.0
    """Added to every norm's weights."""
    activation: Activation = "silu"
    attention_scale: float | None = None
    """By which scores are multiplied; None: 1 / √head_dim."""
    attention_cap: float | None = None
    logits_cap: float | None = None
    """Scores and logits x become cap · tanh(x / cap)."""
    embedding_scale: float | None = None
    """By which embeddings are multiplied."""
    rounded_embedding_scale: bool = False
    """That factor is of the embedding's own type."""
    residual_scale: float = 1.0
    """By which what is added to the residual is multiplied."""
    logits_divisor: float = 1.0
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Matrices of a layer that its checkpoints keep as one, and the name of that one before them;
    stored they are apart."""

    @property
    def score_scale(self) -> float:
        """By which scores are multiplied."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def rope_of(self, layer: int) -> Rope | None:
        """What turns a layer's queries and keys; None where nothing does."""
        return self.ropes[layer] if self.ropes else self.rope

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
    _check_activation(values, family)
    hidden_size, heads = size(values, "hidden_size"), size(values, "num_attention_heads")
    kv_heads = _kv_heads(values, family, heads)
    head_dim = _head_dim(values, family, hidden_size, heads)
    layer_count = size(values, "num_hidden_layers", MAX_LAYERS)
    vocab_size = size(values, "vocab_size")
    if not -vocab_size <= (values["pad_token_id"] or 0) < vocab_size:
        raise refuse("pad_token_id", "lies outside the vocabulary")
    positions = size(values, "max_position_embeddings")
    if "original_max_position_embeddings" in family.defaults:
        size(values, "original_max_position_embeddings")  # held to its type, needed or not
    ropes = _ropes(values, family, head_dim, positions)
    context_length = min(positions, *(rope.position_limit or positions for rope in ropes))
    window = layer_kinds.window_of(values, family)
    slides = layer_kinds.sliding_layers(values, family, layer_count, windowed=window is not None)
    turned = layer_kinds.rotated_layers(values, family, layer_count)
    by_layer = [
        (ropes[-1] if sliding else ropes[0]) if turns else None
        for sliding, turns in zip(slides, turned, strict=True)
    ]
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
        rms_norm_eps=_pointed(values, "rms_norm_eps"),
        rope=ropes[0],
        qk_norm=family.qk_norm,
        tied_embeddings=flag(values, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias="mlp_bias" in family.defaults and flag(values, "mlp_bias"),
        windows=layer_kinds.windows(slides, window, context_length),
        ropes=tuple(by_layer) if any(rope is not ropes[0] for rope in by_layer) else (),
        whole_qk_norm=family.whole_qk_norm,
        pre_norms=family.pre_norms,
        post_norms=family.post_norms,
        norm_offset=family.norm_offset,
        activation=family.activation,
        fused=family.fused,
        **_scales(values, family, hidden_size),
    )


def _check_activation(values: Mapping[str, Any], family: ModelFamily) -> None:
    """Of two fields that name it the one that the family knows counts; the other must agree."""
    names = _ACTIVATIONS[family.activation]
    known = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    other = "hidden_act" if known == "hidden_activation" else "hidden_activation"
    if values[known] not in names:
        raise refuse(known, f"must be {names[0]}")
    if other not in family.defaults and values.get(other) not in (None, *names):
        raise refuse(other, f"must be {names[0]}, as {known}")


def _ropes(
    values: Mapping[str, Any], family: ModelFamily, head_dim: int, positions: int
) -> tuple[Rope, ...]:
    """One for all layers, or one for full layers and one for those that slide."""
    if family.local_rope:
        return parse_layer_ropes(values, head_dim, positions)
    partly = family.partly_rotated
    return (parse_rope(values, head_dim, positions, family.rope_names, partly=partly),)


def _scales(values: Mapping[str, Any], family: ModelFamily, hidden_size: int) -> dict[str, Any]:
    """The fields of ModelConfig that scale or cap something."""
    found: dict[str, Any] = {}
    if "attention_multiplier" in family.defaults:
        found["attention_scale"] = number(values, "attention_multiplier")
        found["embedding_scale"] = number(values, "embedding_multiplier")
        found["residual_scale"] = number(values, "residual_multiplier")
        found["logits_divisor"] = number(values, "logits_scaling")
    if "query_pre_attn_scalar" in family.defaults:
        found["attention_scale"] = size(values, "query_pre_attn_scalar") ** -0.5
        for ours, theirs in _CAPS.items():
            found[ours] = None if values[theirs] is None else _pointed(values, theirs)
        if values["use_bidirectional_attention"] not in (None, False):
            raise refuse("use_bidirectional_attention", "is not served: absent, null or false")
    if family.scaled_embedding:
        found |= {"embedding_scale": hidden_size**0.5, "rounded_embedding_scale": True}
    return found


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


def _pointed(values: Mapping[str, Any], field: str) -> float:
    value = values[field]
    if type(value) is not float or not 0 < value < NUMBER_LIMIT:
        raise refuse(field, "must be a positive number with a point")
    return value
