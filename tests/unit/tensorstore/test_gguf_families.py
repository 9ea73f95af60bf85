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
from services.model.config import ModelConfig, parse_config
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from tests import gguf_models
from tests.gguf_models import GgufModel
from tests.model_families import WINDOW, random_model

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
_GEMMA = {**_OLMO2, "pre_feedforward_layernorm": "ffn_norm"}
_RENAMED = {"olmo2": _OLMO2, "gemma2": _GEMMA, "gemma3_text": _GEMMA}
_ARCHITECTURES = {"gemma3_text": "gemma3"}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PERMUTED = ("granite", "smollm3")
_GEMMAS = ("gemma2", "gemma3_text")
MODELS = {
    "Phi-3 mini 4k": {},
    "Phi-4 mini": {},
    "Granite 3": {},
    "Granite with biases": {},
    "OLMo 2": {},
    "SmolLM 3": {"no_rope_layer_interval": 4},  # llama.cpp knows no other
    "Gemma 2": {"query_pre_attn_scalar": 32, "vocab_size": 512},  # nor here
    "Gemma 3": {
        "query_pre_attn_scalar": 32,
        "vocab_size": 512,
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 20000.0,
    },
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
    names = _NAMES | _RENAMED.get(family, {})
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
        if config.model_type in _GEMMAS and hf_name.endswith("norm.weight"):
            values = values + 1
        found[_name(config.model_type, hf_name)] = values
    return found


def _metadata(config: Any, head_dim: int) -> dict[str, Any]:
    family = _ARCHITECTURES.get(config.model_type, config.model_type)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
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
    if config.model_type in _GEMMAS:
        found |= {
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.sliding_window": config.sliding_window,
        }
        if family == "gemma2":
            found["attn_logit_softcapping"] = config.attn_logit_softcapping
            found["final_logit_softcapping"] = config.final_logit_softcapping
        else:
            local = config.rope_parameters["sliding_attention"]["rope_theta"]
            found["rope.freq_base_swa"] = local
        if rope["rope_type"] == "linear":
            found["rope.scaling.type"] = "linear"
            found["rope.scaling.factor"] = rope["factor"]
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
    gemma = config.model_type in _GEMMAS
    return prefixed | (gguf_models.gemma_pieces() if gemma else gguf_models.byte_level("smollm"))


def as_gguf(model: Any) -> GgufModel:
    """What a converter makes of transformers' model."""
    config = model.config
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    tensors = _tensors(config, model.state_dict())
    if config.rope_parameters.get("rope_type") == "longrope":
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
            kept = state[hf_name].bfloat16()
            if name.startswith("Gemma") and hf_name.endswith("norm.weight"):  # 1 was added
                assert torch.allclose(values, kept, rtol=0, atol=2**-24), hf_name
            else:
                assert torch.equal(values, kept), hf_name
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
        ("Gemma 2", {"blk.1.post_ffw_norm.weight": None}, "tensors"),
        ("Gemma 2", {"blk.1.attn_q_norm.weight": np.zeros(32, np.float32)}, "tensors"),
    ],
)
def test_tensors_that_are_not_the_familys_are_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], field: str
) -> None:
    written = as_gguf(random_model(name, **MODELS[name]))
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
        ("Gemma 2", {"gemma2.attn_logit_softcapping": 0.0}),
        ("Gemma 2", {"gemma2.attention.sliding_window_pattern": [True]}),
        ("Gemma 2", {"gemma2.attention.sliding_window_pattern": 0}),
        ("Gemma 2", {"gemma2.rope.freq_base_swa": 10000.0}),
        ("Gemma 2", {"gemma2.attention.scale": 0.5}),
        ("Gemma 2", {"tokenizer.ggml.add_space_prefix": True}),
        ("Gemma 3", {"gemma3.attn_logit_softcapping": 50.0}),
        ("Gemma 3", {"gemma3.vision.block_count": 27}),
    ],
)
def test_metadata_that_would_change_an_answer_are_refused_by_key(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    path = (
        as_gguf(random_model(name, **MODELS[name])).changed(change).write(tmp_path / "model.gguf")
    )
    with pytest.raises(InvalidArgument) as refused:
        GgufCheckpoint(path)
    assert refused.value.field == next(iter(change))


def _gemma(directory: Path, name: str, change: Mapping[str, Any], **shape: Any) -> ModelConfig:
    written = as_gguf(random_model(name, **{**MODELS[name], **shape})).changed(change)
    with closing(GgufCheckpoint(written.write(directory / "model.gguf"))) as checkpoint:
        return parse_config(checkpoint.config)


def test_what_a_gemmas_file_leaves_out_is_as_llama_cpp_has_it(tmp_path: Path) -> None:
    silent = dict.fromkeys(
        (
            "gemma2.attn_logit_softcapping",
            "gemma2.final_logit_softcapping",
            "gemma2.attention.sliding_window",
        )
    )
    long = {"gemma2.context_length": 8192}
    read = _gemma(tmp_path, "Gemma 2", silent | long)
    assert (read.attention_cap, read.logits_cap) == (50.0, 30.0)
    assert read.windows == (4096, 0, 4096, 0, 4096)


def test_a_gemma_3_without_a_window_has_one_rope(tmp_path: Path) -> None:
    silent = {"gemma3.attention.sliding_window": None}
    read = _gemma(tmp_path, "Gemma 3", silent)
    assert read.windows == ()
    assert {read.rope_of(layer) for layer in range(7)} == {read.rope}
    assert read.logits_cap is None


def test_a_gemma_3_with_a_window_beyond_its_context_has_two_ropes(tmp_path: Path) -> None:
    """Its layers look back on all there is, but turn at two speeds."""
    read = _gemma(tmp_path, "Gemma 3", {"gemma3.attention.sliding_window": 4096})
    assert read.windows == ()
    assert [read.rope_of(layer) == read.rope for layer in range(7)] == [False] * 5 + [True, False]


@pytest.mark.parametrize("pattern", [3, [True, True, False, True, True, False, True]])
def test_a_pattern_that_a_gemmas_file_tells_counts(tmp_path: Path, pattern: Any) -> None:
    read = _gemma(tmp_path, "Gemma 3", {"gemma3.attention.sliding_window_pattern": pattern})
    assert read.windows == (WINDOW, WINDOW, 0, WINDOW, WINDOW, 0, WINDOW)
    assert _gemma(tmp_path, "Gemma 3", {"gemma3.final_logit_softcapping": 9.0}).logits_cap == 9.0


@pytest.mark.parametrize(("name", "layers"), [("Gemma 2", 46), ("Gemma 3", 62)])
def test_scores_of_the_widest_gemmas_are_scaled_by_another_size(
    tmp_path: Path, name: str, layers: int
) -> None:
    read = _gemma(tmp_path, name, {}, num_hidden_layers=layers, intermediate_size=8)
    assert read.attention_scale == pytest.approx((96 // 6) ** -0.5)
    assert read.head_dim == 32
