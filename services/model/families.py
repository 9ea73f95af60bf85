"""The model types that are served, and what transformers takes for granted for each.

A key that is absent has the default of its family's configuration class; a key that is null is
null, which few fields may be. Types are held to as strictly as those classes hold to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from services.model.fields import refuse

Activation = Literal["silu", "gelu"]
"""Of a feed-forward layer's gate; gelu is its approximation by tanh."""
Slides = Literal["every layer", "from a layer on", "unrotated layers", "by a pattern"]
"""Which layers slide: all; those of `layer_types`, else from `max_window_layers` on; those of
`layer_types`, else those without rope, or all but every so many-th."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One `model_type`."""

    architecture: str
    defaults: Mapping[str, Any]
    """Fields that its configuration class knows. Others mean nothing to it."""
    nullable: frozenset[str]
    qk_norm: bool = False
    whole_qk_norm: bool = False
    """Its norms on queries and on keys are each of all heads together."""
    qkv_bias: bool = False
    """Its queries, keys and values have biases, whatever `attention_bias` says."""
    pre_norms: bool = True
    post_norms: bool = False
    """Norms in front of attention and of the feed-forward layer, and behind them."""
    norm_offset: float = 0.0
    """What its norms' weights count from."""
    activation: Activation = "silu"
    slides: Slides = "every layer"
    """Which layers have the `sliding_window`, where the family knows one."""
    partly_rotated: bool = False
    """`partial_rotary_factor` says how much of a head is rotated; of others, all is."""
    rope_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The rope types it knows, and what each is; all by their own names where there are none."""
    local_rope: bool = False
    """Its sliding layers have a rope of their own."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the root of `hidden_size`, in their own type."""
    heads_divide_hidden: bool = False
    """`hidden_size` must be a multiple of the heads even where `head_dim` is given."""
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Matrices of a layer that its checkpoints keep as one, rows of one behind rows of another."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config over the defaults."""
        return {**self.defaults, **config}


DEFAULT_ENDS: Mapping[str, tuple[int, ...]] = {
    "llama": (2,),
    "mistral": (2,),
    "phi3": (32000,),
    "granite": (2,),
    "olmo2": (50279,),
    "smollm3": (128001,),
    "gemma2": (1,),
    "gemma3_text": (1,),
}
"""`eos_token_id` of a family's class. It ends a sequence where config.json has none and no
generation_config.json stands beside it."""

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_GEMMA: dict[str, Any] = {
    **{name: value for name, value in _COMMON.items() if name != "hidden_act"},
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}
_CAPS = {"final_logit_softcapping", "attn_logit_softcapping"}
FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily(
        architecture="LlamaForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        nullable=frozenset({"num_key_value_heads", "head_dim"}),
        heads_divide_hidden=True,
    ),
    "mistral": ModelFamily(
        architecture="MistralForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "head_dim": None,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        nullable=frozenset({"head_dim", "sliding_window"}),
    ),
    "qwen2": ModelFamily(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN,
        nullable=frozenset({"num_key_value_heads", "sliding_window", "layer_types"}),
        qkv_bias=True,
        slides="from a layer on",
    ),
    "qwen3": ModelFamily(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        nullable=frozenset({"num_key_value_heads", "sliding_window", "layer_types"}),
        qk_norm=True,
        slides="from a layer on",
    ),
    "phi3": ModelFamily(
        architecture="Phi3ForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 32000,
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
        },
        nullable=frozenset({"num_key_value_heads", "sliding_window"}),
        partly_rotated=True,
        rope_names=MappingProxyType(
            {"default": "default", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}
        ),
        fused=(
            (
                "self_attn.qkv_proj",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ),
    ),
    "granite": ModelFamily(
        architecture="GraniteForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
            "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        nullable=frozenset({"num_key_value_heads"}),
    ),
    "olmo2": ModelFamily(
        architecture="Olmo2ForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 50304,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 1,
            "attention_bias": False,
        },
        nullable=frozenset({"num_key_value_heads"}),
        qk_norm=True,
        whole_qk_norm=True,
        pre_norms=False,
        post_norms=True,
    ),
    "smollm3": ModelFamily(
        architecture="SmolLM3ForCausalLM",
        defaults={
            **_COMMON,
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2000000.0,
            "pad_token_id": 128004,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        nullable=frozenset(
            {"num_key_value_heads", "sliding_window", "layer_types", "no_rope_layers"}
        ),
        slides="unrotated layers",
    ),
    "gemma2": ModelFamily(
        architecture="Gemma2ForCausalLM",
        defaults=_GEMMA,
        nullable=frozenset({"layer_types", *_CAPS}),
        post_norms=True,
        norm_offset=1.0,
        activation="gelu",
        slides="by a pattern",
        scaled_embedding=True,
        heads_divide_hidden=True,
    ),
    "gemma3_text": ModelFamily(
        architecture="Gemma3ForCausalLM",
        defaults={
            **_GEMMA,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        nullable=frozenset({"layer_types", *_CAPS}),
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        activation="gelu",
        slides="by a pattern",
        local_rope=True,
        scaled_embedding=True,
        heads_divide_hidden=True,
    ),
}
"""As in the configuration classes of transformers 5."""

_INERT: dict[str, tuple[type, ...]] = {
    "attention_dropout": (int, float),
    "bos_token_id": (int, type(None)),
    "eos_token_id": (int, list, type(None)),
    "initializer_range": (float,),
    "pad_token_id": (int, type(None)),
    "use_cache": (bool,),
}
"""Fields of every family that change no answer; of another type, its class takes none of them."""
_FOREIGN = (
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "per_layer_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
)
"""What other families compute with: a model that needs it was renamed."""
_DTYPES = ("bfloat16", "float16", "float32")


def family_of(config: Mapping[str, Any]) -> ModelFamily:
    """Raises InvalidArgument for a model type, an architecture or a field of another kind."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise refuse("model_type", f"must be one of {', '.join(FAMILIES)}")
    names = config.get("architectures")
    if names is not None and (not isinstance(names, list) or family.architecture not in names):
        raise refuse("architectures", f"must name {family.architecture}, or be absent")
    if config.get("quantization_config") is not None:
        raise refuse("quantization_config", "quantised weights are not served")
    for name in _FOREIGN:
        if name not in family.defaults and config.get(name):
            raise refuse(name, f"a {model_type} model has no such thing; absent, null or false")
    _check_inert(config)
    return family


def _check_inert(config: Mapping[str, Any]) -> None:
    for name, kinds in _INERT.items():
        if name in config and type(config[name]) not in kinds:
            raise refuse(name, f"must be {_words(kinds)}")
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and any(type(end) is not int for end in ends):
        raise refuse("eos_token_id", "must be an integer, or a list of integers")
    if not 0 <= config.get("initializer_range", 0.0) <= 1:
        raise refuse("initializer_range", "must be from 0 to 1")
    _check_dtype(config)


def _check_dtype(config: Mapping[str, Any]) -> None:
    """`dtype` counts before `torch_dtype`, its older name."""
    for name in ("dtype", "torch_dtype"):
        if config.get(name) is not None:
            if config[name] not in _DTYPES:
                raise refuse(name, f"must be one of {', '.join(_DTYPES)}")
            return


def _words(kinds: tuple[type, ...]) -> str:
    names = {
        int: "an integer",
        float: "a number with a point",
        list: "a list",
        bool: "true or false",
    }
    return " or ".join(names.get(kind, "null") for kind in kinds)
