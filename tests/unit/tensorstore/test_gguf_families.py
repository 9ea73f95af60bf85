"""A model of transformers', written as llama.cpp's converters write it, is read as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import InvalidArgument
from services.model.config import parse_config
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from tests import gguf_models
from tests.gguf_models import GgufModel
from tests.model_families import random_model

pytest.importorskip("transformers")
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OLMO2 = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PERMUTED = ("granite", "smollm3")
MODELS = {
    "Phi-3 mini 4k": {},
    "Phi-4 mini": {},
    "Granite 3": {},
    "Granite with biases": {},
    "OLMo 2": {},
    "SmolLM 3": {"no_rope_layer_interval": 4},  # llama.cpp knows no other
}


def _permuted(values: Any, heads: int) -> Any:
    """As `LlamaModel.permute` of llama.cpp's converter."""
    rows = values.shape[0] // heads // 2
    return values.reshape(heads, 2, rows, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _name(family: str, hf_name: str) -> str:
    stem, _, kind = hf_name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    names = _NAMES | (_OLMO2 if family == "olmo2" else {})
    return f"blk.{layer}.{names[part]}.{kind}"


def _tensors(config: Any, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for hf_name, tensor in state.items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = np.ascontiguousarray(tensor.float().numpy())
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if config.model_type in _PERMUTED and (part := hf_name.split(".")[-2]) in heads:
            values = _permuted(values, heads[part])
        found[_name(config.model_type, hf_name)] = values
    return found


def _metadata(config: Any, head_dim: int) -> dict[str, Any]:
    family = config.model_type
    rope = config.rope_parameters
    found = {
        "general.architecture": family,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": head_dim,
    }
    if family == "granite":
        found |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
    if family == "phi3":
        original = config.original_max_position_embeddings
        found |= {
            "rope.dimension_count": int(rope["partial_rotary_factor"] * head_dim),
            "rope.scaling.original_context_length": original,
            "attention.sliding_window": config.sliding_window or 0,
        }
        if rope["rope_type"] == "longrope":
            ratio = config.max_position_embeddings / original
            found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(ratio) / math.log(original))
    prefixed = {
        key if key.startswith("general.") else f"{family}.{key}": value
        for key, value in found.items()
    }
    return prefixed | gguf_models.byte_level("smollm")


def as_gguf(model: Any) -> GgufModel:
    """What a converter makes of transformers' model."""
    config = model.config
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    tensors = _tensors(config, model.state_dict())
    if config.rope_parameters["rope_type"] == "longrope":
        for kind in ("short", "long"):
            factors = np.array(config.rope_parameters[f"{kind}_factor"], dtype=np.float32)
            tensors[f"rope_factors_{kind}.weight"] = factors
    return GgufModel(_metadata(config, head_dim), tensors)


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_is_read_as_it_was(tmp_path: Path, name: str) -> None:
    model = random_model(name, **MODELS[name])
    path = as_gguf(model).write(tmp_path / "model.gguf")
    model.save_pretrained(tmp_path / "hf")
    with closing(GgufCheckpoint(path)) as checkpoint:
        read, wanted = parse_config(checkpoint.config), parse_config(model.config.to_dict())
        state = dict(model.state_dict())
        for part in [key for key in state if "qkv_proj" in key or "gate_up" in key]:
            state |= _split(part, state.pop(part), model.config)
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
        assert checkpoint.tensors.keys() == state.keys()
        for hf_name, tensor in checkpoint.tensors.items():
            data = bytearray(tensor.size_bytes)
            checkpoint.read_rows(hf_name, 0, tensor.shape[0], memoryview(data))
            values = torch.frombuffer(data, dtype=torch.bfloat16).view(tensor.shape)
            assert torch.equal(values, state[hf_name].bfloat16()), hf_name
            if tensor.shape[0] > 5:  # as an import reads: some rows of it
                part = bytearray(3 * tensor.row_bytes)
                checkpoint.read_rows(hf_name, 2, 5, memoryview(part))
                assert part == data[2 * tensor.row_bytes : 5 * tensor.row_bytes]
    assert read.rope.attention_factor == pytest.approx(wanted.rope.attention_factor, rel=1e-6)
    assert replace(read, rope=wanted.rope, ropes=wanted.ropes) == wanted
    assert read.rope.frequencies == wanted.rope.frequencies
    assert [bool(rope) for rope in read.ropes] == [bool(rope) for rope in wanted.ropes]


def _split(name: str, tensor: torch.Tensor, config: Any) -> dict[str, torch.Tensor]:
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    if "qkv_proj" in name:
        parts = tensor.split([len(tensor) - 2 * keys, keys, keys])
        names = ("q_proj", "k_proj", "v_proj")
        return {name.replace("qkv_proj", n): p for n, p in zip(names, parts, strict=True)}
    names = ("gate_proj", "up_proj")
    parts = tensor.chunk(2)
    return {name.replace("gate_up_proj", n): p for n, p in zip(names, parts, strict=True)}


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("Phi-4 mini", {"rope_factors_long.weight": None}, "tensors"),
        ("Phi-3 mini 4k", {"blk.1.ffn_up.weight": np.zeros((100, 96), np.float32)}, "shape"),
        ("OLMo 2", {"blk.1.post_ffw_norm.weight": None}, "tensors"),
        ("OLMo 2", {"blk.1.attn_norm.weight": np.zeros(96, np.float32)}, "tensors"),
    ],
)
def test_tensors_that_are_not_the_familys_are_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], field: str
) -> None:
    written = as_gguf(random_model(name))
    tensors = {key: value for key, value in (written.tensors | change).items() if value is not None}
    path = GgufModel(written.metadata, tensors).write(tmp_path / "model.gguf")
    with pytest.raises(InvalidArgument, match=next(iter(change)).replace(".", r"\.")) as refused:
        GgufCheckpoint(path)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("SmolLM 3", {"smollm3.attention.sliding_window": 37}),
        ("Phi-3 mini 4k", {"phi3.rope.scaling.attn_factor": 1.5}),
        ("OLMo 2", {"olmo2.embedding_scale": 2.0}),
        ("Granite 3", {"granite.logit_scale": -1.0}),
    ],
)
def test_metadata_that_would_change_an_answer_are_refused_by_key(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    path = as_gguf(random_model(name)).changed(change).write(tmp_path / "model.gguf")
    with pytest.raises(InvalidArgument) as refused:
        GgufCheckpoint(path)
    assert refused.value.field == next(iter(change))
