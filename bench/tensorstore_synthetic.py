"""A checkpoint of any size that exists only while it is read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from services.tensorstore.sources.checkpoint import SourceTensor
from tests.checkpoints import smallest_tokenizer

_POOL_BYTES = 16 << 20


_COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256}


def config_1b() -> dict[str, Any]:
    """The shape of Llama 3.2 1B: 2.5 GB."""
    return _COMMON | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    }


def config_8b() -> dict[str, Any]:
    """The shape of Llama 3 8B: 16 GB."""
    return _COMMON | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }


class SyntheticCheckpoint:
    """Bytes that differ from row to row and from tensor to tensor, made as they are asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.files: Mapping[str, bytes] = {
            "tokenizer.json": smallest_tokenizer().to_str().encode(),
            "generation_config.json": b'{"eos_token_id": 0}',
        }
        hidden, rows = config["hidden_size"], config["intermediate_size"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        parts = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (rows, hidden),
            "mlp.up_proj": (rows, hidden),
            "mlp.down_proj": (hidden, rows),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"model.layers.{layer}.{part}.weight": shape
            for layer in range(config["num_hidden_layers"])
            for part, shape in parts.items()
        }
        shapes["model.embed_tokens.weight"] = (config["vocab_size"], hidden)
        if not config["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (config["vocab_size"], hidden)
        shapes["model.norm.weight"] = (hidden,)
        self.tensors = {name: SourceTensor(name, "BF16", shape) for name, shape in shapes.items()}
        self._pool = np.random.default_rng(0).integers(0, 256, 2 * _POOL_BYTES, dtype=np.uint8)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        out = np.frombuffer(into, dtype=np.uint8)
        row_bytes = self.tensors[name].row_bytes
        step = max(1, _POOL_BYTES // row_bytes)
        for row in range(first, last, step):
            stop = min(row + step, last)
            offset = zlib.crc32(f"{name} {row}".encode()) % _POOL_BYTES
            piece = out[(row - first) * row_bytes : (stop - first) * row_bytes]
            piece[:] = self._pool[offset : offset + len(piece)]

    def close(self) -> None:
        return
