"""The model family this engine runs, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument

MODEL_TYPES = ("llama", "mistral", "qwen3")
LANES = 16
"""Hidden size, head size and FFN size are multiples of this."""
SIZE_LIMIT = 1 << 24
"""No single size of a model is larger."""


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Rotary frequencies stretched as Llama 3.1 does (Grattafiori et al. 2024, §3.4.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """GQA + SwiGLU + RoPE + RMSNorm, with or without norms on queries and keys."""

    hidden_size: int
    intermediate_size: int
    layer_count: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    qk_norm: bool
    tied_embeddings: bool


def _refuse(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"config.json: {field}: {message}", field=field)


def _size(config: Mapping[str, Any], field: str, multiple: int = 1) -> int:
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= SIZE_LIMIT:
        raise _refuse(field, f"must be an integer from 1 to {SIZE_LIMIT}")
    if value % multiple:
        raise _refuse(field, f"must be a multiple of {multiple}, is {value}")
    return value


def _number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _refuse(field, "must be a positive number")
    return float(value)


def _absent(config: Mapping[str, Any], field: str) -> None:
    if config.get(field):
        raise _refuse(field, "is not supported; it must be absent, null or false")


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Theta and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise _refuse("rope_parameters", "must be an object")
    theta = _number({"rope_theta": config.get("rope_theta") or 10000.0, **given}, "rope_theta")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _refuse("rope_parameters.rope_type", "must be default or llama3")
    low, high = _number(given, "low_freq_factor"), _number(given, "high_freq_factor")
    if high <= low:
        raise _refuse("high_freq_factor", "must be above low_freq_factor")
    original = _size(given, "original_max_position_embeddings")
    return theta, Llama3Scaling(_number(given, "factor"), low, high, original)


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`; InvalidArgument names the first field this engine cannot follow."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise _refuse("model_type", f"must be one of {', '.join(MODEL_TYPES)}")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refuse("hidden_act", "must be silu")
    for field in ("attention_bias", "mlp_bias", "quantization_config", "use_sliding_window"):
        _absent(config, field)
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refuse("partial_rotary_factor", "must be 1")
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
        raise _refuse("layer_types", "must all be full_attention")
    hidden_size, heads = _size(config, "hidden_size", LANES), _size(config, "num_attention_heads")
    kv_heads = _size({"num_key_value_heads": heads, **config}, "num_key_value_heads")
    if heads % kv_heads:
        raise _refuse("num_key_value_heads", f"must divide the {heads} attention heads")
    head_dim = config.get("head_dim") or hidden_size // heads
    head_dim = _size({"head_dim": head_dim}, "head_dim", LANES)
    context_length = _size(config, "max_position_embeddings")
    if model_type == "mistral" and config.get("sliding_window"):
        # Inside the window sliding and full attention are the same thing.
        context_length = min(context_length, _size(config, "sliding_window"))
    theta, scaling = _rope(config)
    return ModelConfig(
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size", LANES),
        layer_count=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_size(config, "vocab_size"),
        context_length=context_length,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=model_type == "qwen3",
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
