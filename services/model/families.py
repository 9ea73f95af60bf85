"""The model types that are served, and what transformers takes for granted for each.

A key that is absent has the default of its family's configuration class; a key that is null is
null, which few fields may be. Types are held to as strictly as those classes hold to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.model.fields import refuse


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One `model_type`."""

    architecture: str
    defaults: Mapping[str, Any]
    """Fields that its configuration class knows. Others mean nothing to it."""
    nullable: frozenset[str]
    qk_norm: bool = False
    qkv_bias: bool = False
    """Its queries, keys and values have biases, whatever `attention_bias` says."""
    layerwise_window: bool = False
    """`layer_types` says which layers have the `sliding_window`; else all have it."""
    heads_divide_hidden: bool = False
    """`hidden_size` must be a multiple of the heads even where `head_dim` is given."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config over the defaults."""
        return {**self.defaults, **config}


DEFAULT_ENDS: Mapping[str, tuple[int, ...]] = {"llama": (2,), "mistral": (2,)}
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
        layerwise_window=True,
    ),
    "qwen3": ModelFamily(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        nullable=frozenset({"num_key_value_heads", "sliding_window", "layer_types"}),
        qk_norm=True,
        layerwise_window=True,
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
    for field in _FOREIGN:
        if config.get(field):
            raise refuse(field, f"a {model_type} model has no such thing; absent, null or false")
    _check_inert(config)
    return family


def _check_inert(config: Mapping[str, Any]) -> None:
    for field, kinds in _INERT.items():
        if field in config and type(config[field]) not in kinds:
            raise refuse(field, f"must be {_words(kinds)}")
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and any(type(end) is not int for end in ends):
        raise refuse("eos_token_id", "must be an integer, or a list of integers")
    if not 0 <= config.get("initializer_range", 0.0) <= 1:
        raise refuse("initializer_range", "must be from 0 to 1")
    _check_dtype(config)


def _check_dtype(config: Mapping[str, Any]) -> None:
    """`dtype` counts before `torch_dtype`, its older name."""
    for field in ("dtype", "torch_dtype"):
        if config.get(field) is not None:
            if config[field] not in _DTYPES:
                raise refuse(field, f"must be one of {', '.join(_DTYPES)}")
            return


def _words(kinds: tuple[type, ...]) -> str:
    names = {
        int: "an integer",
        float: "a number with a point",
        list: "a list",
        bool: "true or false",
    }
    return " or ".join(names.get(kind, "null") for kind in kinds)
