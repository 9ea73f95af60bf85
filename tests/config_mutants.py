"""Configs that people might bring: small ones of every family, each with one or two things changed.

Changes are those that the wild shows: a key dropped, null, of another type, out of range, said a
second time in its other spelling.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"factor": 3.0, "original_max_position_embeddings": 32}
_LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 64,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {
        **_SMALL,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
    },
    "llama3": {
        **_SMALL,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 8,
        "rope_scaling": {"rope_type": "llama3", **_LLAMA3},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "llama of version 5": {
        **_SMALL,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 16,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 20000.0, **_YARN},
        "dtype": "bfloat16",
    },
    "mistral": {
        **_SMALL,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "rope_theta": 10000.0,
        "sliding_window": 20,
        "torch_dtype": "float16",
    },
    "qwen2": {
        **_SMALL,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "qwen3": {
        **_SMALL,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 10,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "layer_types": ["full_attention"] * 3,
        "use_sliding_window": False,
        "sliding_window": None,
        "dtype": "bfloat16",
    },
    "phi3": {
        **_SMALL,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": 20,
        "original_max_position_embeddings": 64,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    },
    "phi4": {
        **_SMALL,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 60,
        "partial_rotary_factor": 0.8,
        "rope_scaling": {name: value for name, value in _LONG.items() if "original" not in name},
        "sliding_window": 262144,
        "original_max_position_embeddings": 64,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    },
    "granite": {
        **_SMALL,
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    },
    "olmo2": {
        **_SMALL,
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "attention_bias": False,
        "rope_theta": 500000,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    },
    "smollm3": {
        **_SMALL,
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "no_rope_layer_interval": 2,
        "layer_types": ["full_attention"] * 3,
        "use_sliding_window": False,
        "sliding_window": None,
        "pad_token_id": 0,
        "dtype": "bfloat16",
    },
    "gemma2": {
        **_SMALL,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 9,
        "sliding_window": 11,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        **{name: value for name, value in _SMALL.items() if name != "hidden_act"},
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 9,
        "sliding_window": 11,
        "sliding_window_pattern": 2,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
    },
}
_SECOND: tuple[dict[str, Any], ...] = (
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", **_YARN}},
    {"rope_scaling": {"type": "yarn", **_YARN, "mscale": 0.9, "mscale_all_dim": 0.6}},
    {"rope_scaling": {"rope_type": "llama3", **_LLAMA3}},
    {"rope_scaling": {"type": "su", "factor": 2.0}},
    {"rope_scaling": {"type": "linear", "rope_type": "yarn", **_YARN}},
    {"rope_scaling": _LONG},
    {"rope_scaling": {}},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 777.0}}},
    {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
    {"rope_theta": 4000.0},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 1.0},
    {"original_max_position_embeddings": 48},
    {"head_dim": 12},
    {"num_key_value_heads": 3},
    {"sliding_window": 11},
    {"use_sliding_window": True},
    {"max_window_layers": 2},
    {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    {"layer_types": ["full_attention"] * 3},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"hidden_act": "swish"},
    {"hidden_activation": "gelu"},
    {"dtype": "float16"},
    {"torch_dtype": "float32"},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"num_local_experts": 4},
    {"architectures": ["GPT2LMHeadModel"]},
    {"model_type": "gpt2"},
    {"pad_token_id": 131},
    {"eos_token_id": [2, 3]},
    {"tie_word_embeddings": True},
    {"no_rope_layers": [1, 0, 1]},
    {"no_rope_layers": None},
    {"attention_multiplier": 0.5},
    {"final_logit_softcapping": 2.0},
    {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 777.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 99.0},
        }
    },
    {"_name_or_path": "somebody/model"},
    {"auto_map": {"AutoModelForCausalLM": "modeling_custom.Custom"}},
)
_OTHER_TYPES: tuple[Any, ...] = ("x", "8", 1.5, True, [], {}, [3])
_OUT_OF_RANGE = (0, -1, 1 << 40, 1 << 70)


def _drop(owner: dict[str, Any], key: str, chance: random.Random) -> None:
    del owner[key]


def _null(owner: dict[str, Any], key: str, chance: random.Random) -> None:
    owner[key] = None


def _other_type(owner: dict[str, Any], key: str, chance: random.Random) -> None:
    owner[key] = copy.deepcopy(chance.choice(_OTHER_TYPES))


def _out_of_range(owner: dict[str, Any], key: str, chance: random.Random) -> None:
    owner[key] = chance.choice(_OUT_OF_RANGE)


def _another(owner: dict[str, Any], key: str, chance: random.Random) -> None:
    """A value of the same type that may do as well."""
    match owner[key]:
        case bool(value):
            owner[key] = not value
        case int(value):
            owner[key] = chance.choice((value + 1, value + 2, value * 2, max(1, value // 2), 1))
        case float(value):
            owner[key] = value * chance.choice((0.5, 2.0, 10.0))
        case _:
            owner[key] = None


_Change = Callable[[dict[str, Any], str, random.Random], None]
_CHANGES: tuple[_Change, ...] = (_drop, _null, _other_type, _out_of_range, _another, _another)


def mutant(seed: int) -> dict[str, Any]:
    """A config; the same one for the same seed."""
    chance = random.Random(seed)
    config = copy.deepcopy(chance.choice(list(BASES.values())))
    if chance.random() < 0.5:
        config |= copy.deepcopy(chance.choice(_SECOND))
        if chance.random() < 0.6:
            return config
    owners = [config, *(value for value in config.values() if isinstance(value, dict) and value)]
    owner = owners[0] if chance.random() < 0.7 else owners[-1]
    chance.choice(_CHANGES)(owner, chance.choice(list(owner)), chance)
    return config
