"""Small models of the families that people serve: configs, and random models as transformers makes
and saves them.

Each has grouped heads, at least four layers, and a context that its window, where it has one, does
not reach; whatever can have a bias has one that is not zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.tiny_model import model_files, tiny_tokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 336,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 192,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW = 37
MODELS: Mapping[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "llama"},
    "Llama 3": {"model_type": "llama", "rope_theta": 500000.0, "tie_word_embeddings": True},
    "Llama 3.1": {"model_type": "llama", "rope_scaling": _LLAMA3, "rope_theta": 500000.0},
    "Llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "Llama with linear rope": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "Mistral 0.1": {"model_type": "mistral", "sliding_window": WINDOW},
    "Mistral 0.3": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1000000.0},
    "Qwen 2.5": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "Qwen 2.5 with yarn": {"model_type": "qwen2", "rope_scaling": _YARN},
    "Qwen 2 with windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "Qwen 3": {"model_type": "qwen3", "head_dim": 32, "rope_theta": 1000000.0},
    "Phi-3 mini 4k": {"model_type": "phi3", "sliding_window": WINDOW},
    "Phi-4 mini": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 192,
        "rope_scaling": _LONG,
        "tie_word_embeddings": True,
    },
    "Granite 3": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.09375,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
    "Granite with biases": {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "OLMo 2": {"model_type": "olmo2", "rope_theta": 500000.0},
    "SmolLM 3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "SmolLM 3 with windows": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1, 1, 0],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "Gemma 2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 48,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    },
    "Gemma 3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "query_pre_attn_scalar": 48,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "tie_word_embeddings": True,
    },
}


WIDE: Mapping[str, Any] = {"hidden_size": 192}
"""Heads of 32 numbers, the fewest that vLLM has kernels for on a CPU."""
VLLM_MODELS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        [
            "Llama 2",
            "Llama 3",
            "Llama 3.1",
            "Mistral 0.1",
            "Mistral 0.3",
            "Qwen 2.5",
            "Qwen 3",
            "Phi-3 mini 4k",
            "Granite 3",
            "Gemma 2",
            "Gemma 3",
        ],
        WIDE,
    ),
    "Phi-4 mini": {
        **WIDE,
        "rope_scaling": {
            **_LONG,
            "short_factor": [1 + i / 10 for i in range(12)],
            "long_factor": [2 + i / 4 for i in range(12)],
        },
    },
}
"""Those that are compared on vLLM too, and what is changed there."""


def random_model(name: str, **changes: Any) -> Any:
    """Transformers' model, of numbers that bf16 holds."""
    import transformers

    raw = json.loads(json.dumps({**_SIZES, **MODELS[name], **changes}))
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(11)
    scaled = getattr(config, "embedding_multiplier", 1.0)
    if "gemma" in config.model_type:
        scaled = config.hidden_size**0.5
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter_name.endswith("norm.weight"):
            noise = 0.2 * noise + (0.0 if "gemma" in config.model_type else 1.0)
        elif parameter_name.endswith("embed_tokens.weight"):
            noise = noise * 0.12 / scaled  # a larger one says the last id again, for ever
        else:
            noise = noise * (0.5 if parameter_name.endswith("bias") else 0.12)
        parameter.data = noise.bfloat16()
    return model


def save(model: Any, directory: Path) -> Path:
    """As transformers saves it, with a small tokenizer beside it."""
    model.save_pretrained(directory)
    for name, data in model_files(tiny_tokenizer()).items():
        (directory / name).write_bytes(data)
    return directory
