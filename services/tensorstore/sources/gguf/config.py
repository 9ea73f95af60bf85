"""The config.json that transformers would write for the model in a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from services.model.config import MAX_LAYERS
from services.tensorstore.sources.gguf.gemma import GEMMA2, GEMMA3, Gemma, gemma_fields
from services.tensorstore.sources.gguf.metadata import Metadata, refuse
from services.tensorstore.sources.gguf.rope import ROPE_FREQS, phi3_rope, rope_parameters

_NORMS = MappingProxyType(
    {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
)


@dataclass(frozen=True)
class GgufArchitecture:
    """One of llama.cpp's architectures that is a model of ours."""

    name: str
    architecture: str
    model_type: str
    permuted: bool = False
    """llama.cpp keeps the rows of Q and K in another order, for its own rotary embedding."""
    optional_bias: bool = False
    """The config says whether attention has biases, and whether the feed-forward layer has."""
    rope_freqs: bool = False
    """The file may scale its rotary frequencies by a tensor."""
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    """llama.cpp's names of a layer's norms."""
    windows: Literal["none", "all", "told"] = "none"
    """Which layers have the window of a file that tells one."""
    scales: bool = False
    """Its factors stand in the file."""
    gemma: Gemma | None = None
    """What it has if it is one of them."""


_POST_NORMS = MappingProxyType(
    {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
_ALL_NORMS = MappingProxyType(
    {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **_POST_NORMS}
)
FAMILIES = {
    family.name: family
    for family in (
        GgufArchitecture(
            "llama",
            "LlamaForCausalLM",
            "llama",
            permuted=True,
            optional_bias=True,
            rope_freqs=True,
        ),
        GgufArchitecture("qwen2", "Qwen2ForCausalLM", "qwen2", windows="told"),
        GgufArchitecture("qwen3", "Qwen3ForCausalLM", "qwen3", windows="told"),
        GgufArchitecture("phi3", "Phi3ForCausalLM", "phi3", windows="all"),
        GgufArchitecture(
            "granite",
            "GraniteForCausalLM",
            "granite",
            permuted=True,
            optional_bias=True,
            scales=True,
        ),
        GgufArchitecture("olmo2", "Olmo2ForCausalLM", "olmo2", norms=_POST_NORMS),
        GgufArchitecture("smollm3", "SmolLM3ForCausalLM", "smollm3", permuted=True),
        GgufArchitecture("gemma2", "Gemma2ForCausalLM", "gemma2", norms=_ALL_NORMS, gemma=GEMMA2),
        GgufArchitecture(
            "gemma3", "Gemma3ForCausalLM", "gemma3_text", norms=_ALL_NORMS, gemma=GEMMA3
        ),
    )
}
_MISTRAL = GgufArchitecture(
    "llama", "MistralForCausalLM", "mistral", permuted=True, rope_freqs=True, windows="all"
)
"""Converters call it a Llama; it is one but for its window, and has no biases."""
_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
}
"""A Granite's factors, and what its config calls them."""
# What these may say without changing anything; llama.cpp's own defaults.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.layer_norm_epsilon": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "swin_norm": (False,),
    "tensor_data_layout": ("Meta AI original pth",),  # the order that every such file has
    "use_parallel_residual": (False,),
}


def family_of(metadata: Metadata) -> GgufArchitecture:
    """Raises InvalidArgument for a file that is no model, or not of a family we read."""
    metadata.neutral("general.type", ("model",))
    metadata.neutral("general.quantization_version", (2,))
    name = metadata.text("general.architecture")
    if name not in FAMILIES:
        raise refuse("general.architecture", f"{ascii(name)[:40]} is not {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    return _MISTRAL if family.model_type == "llama" and _window(metadata, name) else family


def config_of(
    metadata: Metadata, family: GgufArchitecture, vocabulary: int, factors: Mapping[str, Any]
) -> dict[str, Any]:
    """The config but for what tensors and tokenizer say. `vocabulary` counts the embedding's rows,
    `factors` are the tensors of rotary factors that there are. Raises InvalidArgument."""
    name = family.name
    own: Collection[str] = _SCALES if family.scales else family.gemma.caps if family.gemma else ()
    for key, values in _NEUTRAL.items():
        if key not in own:
            metadata.neutral(f"{name}.{key}", values)
    heads = metadata.size(f"{name}.attention.head_count")
    hidden = metadata.size(f"{name}.embedding_length")
    context = metadata.size(f"{name}.context_length")
    head_dim = _head_dim(metadata, family, hidden, heads)
    if metadata.size(f"{name}.vocab_size", vocabulary) != vocabulary:
        raise refuse(f"{name}.vocab_size", f"the embedding has {vocabulary} rows")
    found = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.size(f"{name}.feed_forward_length"),
        "num_hidden_layers": metadata.size(f"{name}.block_count", limit=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": metadata.number(f"{name}.attention.layer_norm_rms_epsilon"),
        **_rope(metadata, family, head_dim, context, factors),
        "torch_dtype": "bfloat16",
    }
    if family.gemma:
        found |= gemma_fields(metadata, name, family.gemma, found, found["rope_parameters"])
    else:
        windows = _windows(metadata, family, found["num_hidden_layers"])
        found |= {"hidden_act": "silu", **windows, **_scales(metadata, family)}
    if not family.scales:
        _check_scale(metadata, name, found.get("query_pre_attn_scalar", head_dim))
    return found


def _rope(
    metadata: Metadata,
    family: GgufArchitecture,
    head_dim: int,
    context: int,
    factors: Mapping[str, Any],
) -> dict[str, Any]:
    if family.model_type == "phi3":
        return phi3_rope(metadata, head_dim, context, factors)
    freqs = factors.get(ROPE_FREQS)
    return {"rope_parameters": rope_parameters(metadata, family.name, head_dim, context, freqs)}


def _scales(metadata: Metadata, family: GgufArchitecture) -> dict[str, Any]:
    if not family.scales:
        return {}
    return {ours: metadata.number(f"{family.name}.{key}", 1.0) for key, ours in _SCALES.items()}


def _window(metadata: Metadata, name: str) -> int:
    """0 for none that is shorter than the context."""
    window = metadata.index(f"{name}.attention.sliding_window", 1 << 31) or 0
    return window if window < metadata.size(f"{name}.context_length") else 0


def _windows(metadata: Metadata, family: GgufArchitecture, layers: int) -> dict[str, Any]:
    """What a window makes of the config; a Mistral's is of all layers, a Qwen's of those that the
    file tells."""
    key = f"{family.name}.attention.sliding_window_pattern"
    window, pattern = _window(metadata, family.name), metadata.take(key)
    if pattern is not None and not (
        isinstance(pattern, list)
        and len(pattern) == layers
        and all(isinstance(slides, bool) for slides in pattern)
    ):
        raise refuse(key, f"must be a list of {layers} truth values, one a layer")
    if not window:
        return {}
    if family.windows == "all":
        if pattern is not None and not all(pattern):
            raise refuse(key, "its window is of all layers")
        return {"sliding_window": window}
    if family.windows == "none":
        raise refuse(f"{family.name}.attention.sliding_window", "this family has none")
    if pattern is None:
        raise refuse(
            f"{family.name}.attention.sliding_window", f"{key} does not say of which layers"
        )
    kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}


def _head_dim(metadata: Metadata, family: GgufArchitecture, hidden: int, heads: int) -> int:
    """One size for queries, keys and values, and for the rotated part but for a Phi-3's."""
    name = family.name
    head_dim = metadata.size(f"{name}.attention.key_length", max(1, hidden // heads))
    rotated = () if family.model_type == "phi3" else ("rope.dimension_count",)
    for key in ("attention.value_length", *rotated):
        found = metadata.size(f"{name}.{key}", head_dim)
        if found != head_dim:
            raise refuse(f"{name}.{key}", f"is {found}, the key length {head_dim}")
    if head_dim % 2:
        raise refuse(f"{name}.attention.key_length", f"is {head_dim}, an odd number")
    return head_dim


def _check_scale(metadata: Metadata, name: str, divisor: int) -> None:
    """By what scores are scaled: told, it must be what the family has anyway."""
    scale = metadata.take(f"{name}.attention.scale")
    if scale not in (None, 0.0) and not (
        type(scale) is float and math.isclose(scale, divisor**-0.5, rel_tol=1e-6)
    ):
        raise refuse(f"{name}.attention.scale", f"is not 1 / √{divisor}")
