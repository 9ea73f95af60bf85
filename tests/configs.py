"""Small configs of the families that the engine runs."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 1136,  # longer than any piece of K that is summed at once
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 515,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

QWEN3 = {
    **LLAMA,
    "model_type": "qwen3",
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "head_dim": 80,
    "tie_word_embeddings": False,
}
