"""Small random models, quantised as tools do it, beside the plain weights that they stand for.

Scales have three significant bits, so that what a packed matrix stands for is a bf16 number, and a
reference that knows nothing of quantisation computes with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints import make_config, shapes_of

GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column of eight that AutoAWQ keeps in each of a word's four bits."""
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
Parts = dict[str, Tensor]
Quantise = Callable[[Tensor], tuple[Parts, Tensor]]
"""A matrix [out, in] to its parts by ending, and to the matrix that they stand for."""


def _scales(matrix: Tensor, levels: int) -> Tensor:
    """[out, groups], such that `levels` steps reach the largest of a group."""
    largest = matrix.unflatten(1, (-1, GROUP)).abs().amax(2) / levels
    exponent = torch.floor(torch.log2(largest)) - 2
    return torch.ceil(largest / 2**exponent) * 2**exponent


def _rounded(matrix: Tensor, scales: Tensor, least: int, most: int) -> Tensor:
    """[out, in] of whole numbers."""
    spread = scales.repeat_interleave(matrix.shape[1] // scales.shape[1], 1)
    return torch.round(matrix / spread).clamp(least, most).to(torch.int64)


def _stands_for(numbers: Tensor, scales: Tensor) -> Tensor:
    return numbers * scales.repeat_interleave(numbers.shape[1] // scales.shape[1], 1)


def _packed(numbers: Tensor, bits: int = 4) -> Tensor:
    """Whole numbers along the last axis into words, the first one lowest."""
    each = 32 // bits
    words = numbers.unflatten(-1, (-1, each)) << (torch.arange(each) * bits)
    words = words.sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _awq(matrix: Tensor) -> tuple[Parts, Tensor]:
    scales = _scales(matrix, 6)
    zeros = torch.randint(6, 10, scales.shape, generator=torch.Generator().manual_seed(3))
    numbers = _rounded(matrix, scales, -6, 6)
    shifted = numbers + zeros.repeat_interleave(GROUP, 1)
    order = torch.tensor(_AWQ_ORDER)

    def packed(columns: Tensor) -> Tensor:
        return _packed(columns.unflatten(1, (-1, 8))[:, :, order].flatten(1))

    return {
        "qweight": packed(shifted.t()),
        "qzeros": packed(zeros.t()),
        "scales": scales.t().contiguous().half(),
    }, _stands_for(numbers, scales)


def _gptq(bits: int, shuffled: bool = False) -> Quantise:
    def quantise(matrix: Tensor) -> tuple[Parts, Tensor]:
        half = 1 << (bits - 1)
        columns = matrix.shape[1]
        order = torch.arange(columns)
        if shuffled:
            order = torch.randperm(columns, generator=torch.Generator().manual_seed(4))
        sorted_ = matrix[:, order]
        scales = _scales(sorted_, half - 1)
        numbers = _rounded(sorted_, scales, -half, half - 1)
        meant, group = torch.empty_like(matrix), torch.empty(columns, dtype=torch.int32)
        meant[:, order] = _stands_for(numbers, scales).float()
        group[order] = (torch.arange(columns) // GROUP).to(torch.int32)
        rows = torch.empty_like(numbers)
        rows[:, order] = numbers + half
        zeros = torch.full((scales.shape[1], scales.shape[0]), half - 1)
        return {
            "qweight": _packed(rows, bits).t().contiguous(),
            "qzeros": _packed(zeros, bits),
            "scales": scales.t().contiguous().half(),
            "g_idx": group,
        }, meant

    return quantise


def _packed_int4(matrix: Tensor) -> tuple[Parts, Tensor]:
    scales = _scales(matrix, 7)
    numbers = _rounded(matrix, scales, -8, 7)
    return {
        "weight_packed": _packed(numbers + 8),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(matrix.shape),
    }, _stands_for(numbers, scales)


def _int8(matrix: Tensor) -> tuple[Parts, Tensor]:
    scale = matrix.abs().amax(1, keepdim=True) / 127
    numbers = torch.round(matrix / scale).to(torch.int8)
    return {"weight": numbers, "weight_scale": scale}, numbers * scale


def _fp8(name: str, block: tuple[int, int] | None, **beside: Tensor) -> Quantise:
    def quantise(matrix: Tensor) -> tuple[Parts, Tensor]:
        rows, columns = matrix.shape
        high, wide = block or (rows, columns)
        tiles = (-(-rows // high), -(-columns // wide))
        scales = torch.full(tiles, 2.0**-9)
        spread = scales.repeat_interleave(high, 0).repeat_interleave(wide, 1)[:rows, :columns]
        numbers = (matrix / spread).to(torch.float8_e4m3fn)
        if block is None:
            scales = scales[0, 0]
        elif wide >= columns:
            scales = scales[:, :1]
        others = {ending: tensor.clone() for ending, tensor in beside.items()}
        return {"weight": numbers, name: scales, **others}, numbers.float() * spread

    return quantise


@dataclass(frozen=True)
class Way:
    """One way to quantise."""

    settings: Mapping[str, Any]
    quantise: Quantise


def _compressed(form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_WHOLE = {"num_bits": 4, "type": "int", "symmetric": True}
_ROW = {"num_bits": 8, "symmetric": True, "dynamic": False, "strategy": "channel"}
_TOKEN = {"num_bits": 8, "symmetric": True, "dynamic": True, "strategy": "token"}
WAYS: Mapping[str, Way] = {
    "awq": Way(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "version": "gemm",
            "zero_point": True,
        },
        _awq,
    ),
    "gptq": Way(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
        _gptq(4),
    ),
    "gptq by activation": Way(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": True},
        _gptq(4, shuffled=True),
    ),
    "gptq of 8 bits": Way(
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "desc_act": False, "sym": True},
        _gptq(8),
    ),
    "compressed int4": Way(
        _compressed("pack-quantized", {**_WHOLE, "strategy": "group", "group_size": GROUP}, None),
        _packed_int4,
    ),
    "compressed int8": Way(
        _compressed("int-quantized", {**_ROW, "type": "int"}, {**_TOKEN, "type": "int"}), _int8
    ),
    "compressed fp8": Way(
        _compressed("float-quantized", {**_ROW, "type": "float"}, {**_TOKEN, "type": "float"}),
        _fp8("weight_scale", (1, 1 << 20)),
    ),
    "fp8 by matrix": Way(
        {"quant_method": "fp8", "activation_scheme": "dynamic"}, _fp8("weight_scale", None)
    ),
    "fp8 static": Way(
        {"quant_method": "fp8", "activation_scheme": "static"},
        _fp8("weight_scale", None, input_scale=torch.tensor(1 / 32)),
    ),
    "fp8 by block": Way(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        _fp8("weight_scale_inv", (128, 128)),
    ),
}


def quantised(name: str, **changes: Any) -> tuple[dict[str, Any], Parts, Parts]:
    """A Llama's config, its tensors as they are stored, and the plain ones that these stand for."""
    way = WAYS[name]
    config = make_config(**{**SIZES, **changes})
    generator = torch.Generator().manual_seed(7)
    stored: Parts = {}
    plain: Parts = {}
    for tensor_name, shape in shapes_of(config).items():
        noise = torch.randn(shape, generator=generator)
        tensor = (0.08 * noise if len(shape) > 1 else 1 + 0.2 * noise).bfloat16()
        plain[tensor_name] = tensor
        if "proj" not in tensor_name:
            stored[tensor_name] = tensor
            continue
        parts, meant = way.quantise(tensor.float())
        stem = tensor_name.removesuffix("weight")
        stored |= {stem + ending: part for ending, part in parts.items()}
        plain[tensor_name] = meant.bfloat16()
    return {**config, "quantization_config": dict(way.settings)}, stored, plain


_MXFP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""What three bits stand for, without the sign's (OCP Microscaling Formats 1.0, §5.3.3)."""


def in_mxfp4(tensors: Mapping[str, Tensor]) -> Parts:
    """A gpt-oss' tensors with its experts' matrices [expert, in, out] as gpt-oss keeps them: two
    numbers a byte, `_blocks` [expert, out, in / 32, 16], and a power of two for each 32, `_scales`
    [expert, out, in / 32]."""
    found: Parts = {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = tensor
            continue
        groups = tensor.float().transpose(1, 2).unflatten(2, (-1, GROUP))
        exponents = torch.floor(torch.log2(groups.abs().amax(3))) - 2
        scaled = groups / 2 ** exponents[..., None]
        numbers = (scaled.abs()[..., None] - _MXFP4).abs().argmin(-1) | (scaled < 0).long() << 3
        found[f"{name}_blocks"] = (numbers[..., ::2] | numbers[..., 1::2] << 4).to(torch.uint8)
        found[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
    return found
