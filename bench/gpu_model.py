"""Random Llamas of any size, on a GPU as stages and as a checkpoint of the tensor store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from services.model.config import parse_config
from services.model.tensors import stage_shapes
from services.tensorstore.sources.checkpoint import SourceTensor
from tests.tiny_model import model_files, tiny_tokenizer

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 96, "intermediate_size": 1136, "head_dim": 32}
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 515},
    "medium": {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 64}
    | {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 8192},
    "large": {"hidden_size": 4096, "intermediate_size": 14336, "head_dim": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768},
}
"""The large one's layers are those of Llama 3 8B."""


def llama(size: str, layers: int = 4) -> dict[str, Any]:
    """A Hugging Face config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        **SIZES[size],
    }


def random_weights(raw: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """bf16 tensors in memory of the host; made on the device, which is quicker."""
    config = parse_config(dict(raw))
    generator = torch.Generator(device).manual_seed(7)
    tensors = {}
    for name, shape in stage_shapes(config, range(config.layer_count)).items():
        noise = torch.randn(shape, generator=generator, device=device)
        scaled = noise / shape[-1] ** 0.5 if len(shape) > 1 else 1 + 0.2 * noise
        tensors[name] = scaled.bfloat16().cpu()
    return tensors


class MemoryCheckpoint:
    """Implements WeightsCheckpoint over tensors at hand."""

    def __init__(self, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.config = raw
        self.files: Mapping[str, bytes] = model_files(tiny_tokenizer())
        self.tensors = {n: SourceTensor(n, "BF16", tuple(t.shape)) for n, t in tensors.items()}
        self._held = tensors

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        rows = self._held[name][first:last].contiguous().view(-1).view(torch.uint8)
        into[:] = memoryview(rows.numpy())  # type: ignore[arg-type]

    def close(self) -> None:
        return
