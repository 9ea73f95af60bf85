"""Small random models of families that are not native here, and quantised ones, as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from tests.checkpoints import make_config, make_tensors, smallest_tokenizer, write_checkpoint

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
FOREIGN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48, "n_positions": 128},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "head_dim": 8,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 9,
    },
}
"""Families by model type: what each has beside the usual sizes."""
_WIDE = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32}
FOREIGN_ON_VLLM: dict[str, dict[str, Any]] = {
    "mixtral": _WIDE,
    "qwen3_moe": _WIDE,
    "olmoe": _WIDE,
    "opt": {**_WIDE, "word_embed_proj_dim": 128, "ffn_dim": 96},
    "gpt2": {**_WIDE, "n_embd": 128},
    "gemma": _WIDE,
    "gpt_oss": _WIDE,
}
"""Families that are computed on vLLM, with heads that it has kernels for."""


def save_model(
    model_type: str, directory: Path, *, spread: float = 0.02, **changes: Any
) -> dict[str, torch.Tensor]:
    """A random model as transformers saves it; its tensors by name, as they lie in the files."""
    config = transformers.AutoConfig.for_model(
        model_type, **{**_SIZES, **FOREIGN.get(model_type, {}), **changes}
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(spread * noise + (1 if is_norm else 0))
    model = model.to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="40KB")
    (directory / "tokenizer.json").write_text(smallest_tokenizer().to_str())
    (directory / "generation_config.json").write_text('{"eos_token_id": 0}')
    tensors: dict[str, torch.Tensor] = {}
    for shard in directory.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


def read_config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


QUANTISED: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-block": {"quant_method": "fp8", "weight_block_size": [16, 16]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}
"""Ways to quantise, by what config.json says of them."""


def quantised_config(kind: str) -> dict[str, Any]:
    """Of a Llama whose matrices all have whole groups."""
    return make_config(
        hidden_size=32, intermediate_size=64, quantization_config=QUANTISED[kind], head_dim=4
    )


def quantised_tensors(kind: str) -> dict[str, torch.Tensor]:
    """A Llama's tensors, the matrices of its layers as their parts."""
    plain = make_tensors(quantised_config(kind))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        if "proj" not in name:
            tensors[name] = tensor
            continue
        tensors |= _parts(kind, name.removesuffix(".weight"), *tensor.shape)
    return tensors


def _parts(kind: str, stem: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    groups = columns // 16
    half = torch.rand(groups, rows).to(torch.float16)
    match kind:
        case "awq":
            return {
                f"{stem}.qweight": _words(columns, rows // 8),
                f"{stem}.qzeros": _words(groups, rows // 8),
                f"{stem}.scales": half,
            }
        case "gptq":
            return {
                f"{stem}.qweight": _words(columns // 8, rows),
                f"{stem}.qzeros": _words(groups, rows // 8),
                f"{stem}.scales": half,
                f"{stem}.g_idx": torch.arange(columns, dtype=torch.int32) // 16,
            }
        case "fp8":
            return {
                f"{stem}.weight": torch.randn(rows, columns).to(torch.float8_e4m3fn),
                f"{stem}.weight_scale": torch.tensor(0.5),
                f"{stem}.input_scale": torch.tensor([0.25]),
            }
        case "fp8-block":
            blocks = (-(-rows // 16), -(-columns // 16))
            return {
                f"{stem}.weight": torch.randn(rows, columns).to(torch.float8_e4m3fn),
                f"{stem}.weight_scale_inv": torch.rand(blocks),
            }
        case _:
            return {
                f"{stem}.weight_packed": _words(rows, columns // 8),
                f"{stem}.weight_scale": torch.rand(rows, groups).to(torch.bfloat16),
                f"{stem}.weight_shape": torch.tensor([rows, columns]),
            }


def _words(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, (rows, columns)).to(torch.int32)


def save_quantised(kind: str, directory: Path) -> dict[str, torch.Tensor]:
    """A quantised checkpoint; its tensors by name."""
    tensors = quantised_tensors(kind)
    write_checkpoint(directory, quantised_config(kind), tensors, shards=2)
    return tensors
