"""What a GGUF file says is honoured, known to be harmless, or refused by its key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.errors import InvalidArgument
from services.model.config import parse_config
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.gguf.rope import llama3_factors
from tests import gguf_models
from tests.gguf_models import GgufModel


def opened(model: GgufModel, directory: Path) -> GgufCheckpoint:
    checkpoint = GgufCheckpoint(model.write(directory / "tiny.gguf"))
    checkpoint.close()
    return checkpoint


def refusal(model: GgufModel, directory: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        opened(model, directory)
    assert caught.value.message.startswith("tiny.gguf: ")
    return caught.value


@pytest.fixture(scope="module")
def llama() -> GgufModel:
    return gguf_models.model("llama")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_config_is_the_one_transformers_reads(tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig

    model = gguf_models.model(family, gguf_models.byte_level("qwen2"), tied=family == "qwen2")
    ours = opened(model, tmp_path).config
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    again = AutoConfig.for_model(**ours)
    assert ours["architectures"][0].lower() == f"{family}forcausallm"
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rope_parameters",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ):
        assert getattr(again, key) == getattr(theirs, key), key
    assert np.float32(again.rms_norm_eps) == np.float32(theirs.rms_norm_eps)
    assert again.head_dim == 16  # a GGUF reader of theirs forgets Qwen3's key length


SCALED: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "none": ({"type": "none"}, {"rope_type": "default"}),
    "linear": ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "a factor alone is linear": ({"factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    "linear by one": ({"type": "linear", "factor": 1.0}, {"rope_type": "default"}),
    "linear, with notes": (
        {"type": "linear", "factor": 4.0, "finetuned": True, "original_context_length": 64},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "yarn": (
        {"type": "yarn", "factor": 4.0, "original_context_length": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn of the whole context": (
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "yarn with its bounds": (
        {
            "type": "yarn",
            "factor": 2.0,
            "original_context_length": 64,
            "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
            "yarn_ext_factor": 1.0,
        },
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    ),
}


@pytest.mark.parametrize(("given", "wanted"), SCALED.values(), ids=SCALED.keys())
def test_scaled_rotary_embeddings_are_in_the_config(
    tmp_path: Path, llama: GgufModel, given: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    changes = {f"llama.rope.scaling.{key}": value for key, value in given.items()}
    config = opened(llama.changed(changes), tmp_path).config
    assert config["rope_parameters"] == {**wanted, "rope_theta": 10000.0}


def test_the_older_name_of_a_linear_factor_is_read(tmp_path: Path, llama: GgufModel) -> None:
    config = opened(llama.changed({"llama.rope.scale_linear": 8.0}), tmp_path).config
    assert config["rope_parameters"]["rope_type"] == "linear"
    assert config["rope_parameters"]["factor"] == 8.0


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_1_is_recognised(tmp_path: Path, factor: float) -> None:
    import torch

    base, dim = 500000.0, 16
    # llama.cpp's converter, in float32 as it computes
    wanted = []
    for frequency in 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wavelength = 2 * np.pi / frequency
        smooth = torch.clamp((8192 / wavelength - 1.0) / 3.0, 0, 1)
        wanted.append(float(1 / ((1 - smooth) / factor + smooth)))
    model = gguf_models.model("llama").changed({"llama.rope.freq_base": base})
    model = model.with_tensors(rope_freqs__weight=np.array(wanted, np.float32))
    assert opened(model, tmp_path).config["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    checkpoint = opened(model, tmp_path)
    assert not any("rope" in name for name in checkpoint.tensors)


def test_factors_that_are_all_one_change_nothing(tmp_path: Path, llama: GgufModel) -> None:
    model = llama.with_tensors(rope_freqs__weight=np.ones(8, np.float32))
    assert opened(model, tmp_path).config["rope_parameters"]["rope_type"] == "default"


@pytest.mark.parametrize(
    "factors",
    [
        llama3_factors(10000.0, 16, 8.0) * np.linspace(1, 1.01, 8),
        np.full(8, 2.0),
        np.full(8, np.nan),
        np.ones(7),
        np.full(7, 8.0),
        np.zeros(8),
    ],
    ids=["a little off", "all two", "no numbers", "too few", "too few and scaled", "zero"],
)
def test_other_rotary_factors_are_refused_by_name(
    tmp_path: Path, llama: GgufModel, factors: Any
) -> None:
    model = llama.with_tensors(rope_freqs__weight=factors.astype(np.float32))
    assert refusal(model, tmp_path).field == "rope_freqs.weight"


REFUSED: dict[str, Any] = {
    "llama.rope.scaling.type": "longrope",
    "llama.rope.scaling.factor": 0.5,
    "llama.rope.scaling.attn_factor": 2.0,
    "llama.rope.scaling.alpha": 2.0,
    "llama.rope.freq_base_swa": 1e6,
    "llama.rope.dimension_count": 8,
    "llama.rope.dimension_sections": [4, 4],
    "llama.attention.key_length": 32,
    "llama.attention.value_length": 32,
    "llama.attention.sliding_window": -1,
    "llama.attention.sliding_window_pattern": [True],
    "llama.attention.clamp_kqv": 8.0,
    "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.causal": False,
    "llama.attention.scale": 0.5,
    "llama.attention.head_count": 3,
    "llama.attention.head_count_kv": [2, 1],
    "llama.expert_count": 8,
    "llama.logit_scale": 8.0,
    "llama.residual_scale": 0.22,
    "llama.embedding_scale": 12.0,
    "llama.final_logit_softcapping": 30.0,
    "llama.attn_logit_softcapping": 50.0,
    "llama.vocab_size": 7,
    "llama.interleave_moe_layer_step": 2,
    "general.architecture": "gemma",
    "general.type": "adapter",
    "general.quantization_version": 1,
    "adapter.lora.alpha": 16.0,
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.pre": "falcon",
    "tokenizer.ggml.add_bos_token": 1,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.remove_extra_whitespaces": True,
    "tokenizer.ggml.precompiled_charsmap": [1, 2],
    "tokenizer.ggml.eos_token_id": 1 << 20,
    "tokenizer.ggml.eot_token_id": 1 << 20,
    "tokenizer.ggml.eog_token_ids": [1],
    "tokenizer.ggml.suppress_tokens": [1],
    "tokenizer.chat_template": 5,
    "unknown.key": 1,
}


@pytest.mark.parametrize(("key", "value"), REFUSED.items(), ids=REFUSED.keys())
def test_what_would_change_an_answer_is_refused_by_key(
    tmp_path: Path, llama: GgufModel, key: str, value: Any
) -> None:
    error = refusal(llama.changed({key: value}), tmp_path)
    # another number of heads is found by what the file says else of their size
    assert error.field in (key, "llama.rope.dimension_count", "llama.attention.value_length")
    assert error.field in error.message


def test_a_llama_with_a_window_is_a_mistral(tmp_path: Path, llama: GgufModel) -> None:
    plain = opened(llama, tmp_path).config
    found = opened(llama.changed({"llama.attention.sliding_window": 128}), tmp_path).config
    assert found["architectures"] == ["MistralForCausalLM"]
    assert (found["model_type"], found["sliding_window"]) == ("mistral", 128)
    assert parse_config(found).windows == (128, 128)
    assert not set(found) - set(plain) - {"sliding_window"}
    assert set(plain) - set(found) == {"attention_bias", "mlp_bias"}


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"sliding_window_pattern": [True, False]}, "sliding_window_pattern"),
        ("llama", {"sliding_window_pattern": 2}, "sliding_window_pattern"),
        ("qwen2", {}, "sliding_window"),
        ("qwen3", {}, "sliding_window"),
        ("qwen3", {"sliding_window_pattern": [True] * 3}, "sliding_window_pattern"),
        ("qwen3", {"sliding_window_pattern": [1, 0]}, "sliding_window_pattern"),
    ],
)
def test_a_window_that_layers_cannot_be_told_of_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    window = {"sliding_window": 128, **changes}
    keys = {f"{family}.attention.{key}": value for key, value in window.items()}
    error = refusal(gguf_models.model(family).changed(keys), tmp_path)
    assert error.field == f"{family}.attention.{named}"


def test_a_mistral_has_no_biases(tmp_path: Path, llama: GgufModel) -> None:
    windowed = llama.changed({"llama.attention.sliding_window": 128})
    bias = windowed.with_tensors(blk__0__attn_q__bias=np.zeros(64, np.float32))
    assert "MistralForCausalLM" in refusal(bias, tmp_path).message


HARMLESS: dict[str, Any] = {
    "general.license": "mit",
    "general.base_model.0.repo_url": "https://example.org/x",
    "general.sampling.temp": 0.6,
    "quantize.imatrix.entries_count": 224,
    "llama.attention.causal": True,
    "llama.attention.sliding_window": 256,
    "llama.attention.sliding_window_pattern": [True, False],
    "llama.attention.scale": 0.25,
    "llama.attention.value_length": 16,
    "llama.expert_count": 0,
    "llama.logit_scale": 1.0,
    "llama.final_logit_softcapping": 0.0,
    "tokenizer.ggml.fim_pre_token_id": 3,
    "tokenizer.ggml.mask_token_id": 3,
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.huggingface.json": "{}",
}


def test_what_changes_nothing_is_taken(tmp_path: Path, llama: GgufModel) -> None:
    plain = opened(llama, tmp_path)
    noted = opened(llama.changed(HARMLESS), tmp_path)
    assert noted.config == plain.config
    assert noted.files == plain.files


LEFT_OUT = [
    "general.architecture",
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.eos_token_id",
]


@pytest.mark.parametrize("key", LEFT_OUT)
def test_a_key_that_must_be_there_is_named(tmp_path: Path, llama: GgufModel, key: str) -> None:
    assert refusal(llama.changed({key: None}), tmp_path).field == key


def test_a_file_without_a_tokenizer_is_said_to_have_none(tmp_path: Path, llama: GgufModel) -> None:
    bare = {key: None for key in llama.metadata if key.startswith("tokenizer.")}
    assert "has no tokenizer" in refusal(llama.changed(bare), tmp_path).message


def test_biases_of_queries_keys_and_values_are_kept(tmp_path: Path) -> None:
    model = gguf_models.model("qwen2", gguf_models.byte_level("qwen2"))
    path = model.write(tmp_path / "tiny.gguf")
    with closing(GgufCheckpoint(path)) as checkpoint:
        into = bytearray(2 * 64)
        checkpoint.read_rows("model.layers.1.self_attn.q_proj.bias", 0, 64, memoryview(into))
    wanted = model.tensors["blk.1.attn_q.bias"].view(np.uint32) >> 16
    assert np.array_equal(np.frombuffer(into, np.uint16), wanted)
    assert "mlp_bias" not in checkpoint.config


def test_biases_of_a_llama_are_reordered_as_its_weights(tmp_path: Path, llama: GgufModel) -> None:
    chaos = np.random.default_rng(1)
    biases = {
        f"blk__{layer}__{part}__bias": chaos.standard_normal(size).astype(np.float32)
        for layer in range(2)
        for part, size in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", 64))
    }
    model = llama.with_tensors(**biases)
    with closing(GgufCheckpoint(model.write(tmp_path / "tiny.gguf"))) as checkpoint:
        assert checkpoint.config["attention_bias"] is True
        assert checkpoint.config["mlp_bias"] is False
        into = bytearray(2 * 32)
        checkpoint.read_rows("model.layers.0.self_attn.k_proj.bias", 0, 32, memoryview(into))
    stored = np.frombuffer(into, np.uint16)
    given = biases["blk__0__attn_k__bias"].view(np.uint32) >> 16
    halves = given.reshape(2, 8, 2).swapaxes(1, 2).reshape(-1)  # [a0, b0, a1, …] of each head
    assert np.all(np.abs(stored.astype(int) - halves.astype(int)) <= 1)  # rounded, not cut


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q.bias",
        "blk.0.attn_norm.bias",
        "output.bias",
        "blk.2.attn_q.weight",
        "blk.0.ffn_gate_exps.weight",
        "rope_factors_long.weight",
        "position_embd.weight",
    ],
)
def test_a_tensor_that_no_engine_reads_is_refused_by_name(
    tmp_path: Path, llama: GgufModel, name: str
) -> None:
    model = llama.with_tensors(**{name.replace(".", "__"): np.ones(64, np.float32)})
    wanted = "blk.0.attn_k.bias" if name == "blk.0.attn_q.bias" else name  # biases come together
    assert wanted in refusal(model, tmp_path).message


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_a_tensor_that_is_missing_is_named(tmp_path: Path, llama: GgufModel, name: str) -> None:
    model = llama.with_tensors(**{name.replace(".", "__"): None})
    assert f"tensor {name} is missing" in refusal(model, tmp_path).message


def test_a_model_is_tied_where_it_has_no_output_matrix(tmp_path: Path, llama: GgufModel) -> None:
    assert not opened(llama, tmp_path).config["tie_word_embeddings"]
    tied = llama.with_tensors(output__weight=None)
    assert opened(tied, tmp_path).config["tie_word_embeddings"]


def test_eot_and_eom_end_a_chat(tmp_path: Path, llama: GgufModel) -> None:
    eos = llama.metadata["tokenizer.ggml.eos_token_id"]
    ids = {"tokenizer.ggml.eot_token_id": eos - 1, "tokenizer.ggml.eom_token_id": eos - 2}
    files = opened(llama.changed(ids), tmp_path).files
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [eos, eos - 1, eos - 2]


def test_the_end_of_a_turn_that_the_template_writes_ends_a_chat(
    tmp_path: Path, llama: GgufModel
) -> None:
    end = llama.metadata["tokenizer.ggml.eos_token_id"]  # <|im_end|>
    changed = llama.changed({"tokenizer.ggml.eos_token_id": end - 2})  # <|endoftext|>
    files = opened(changed, tmp_path).files
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [end - 2, end]


def test_templates_with_names_need_one_without(tmp_path: Path, llama: GgufModel) -> None:
    named = {"tokenizer.chat_templates": ["rag"], "tokenizer.chat_template.rag": "x"}
    settings = json.loads(opened(llama.changed(named), tmp_path).files["tokenizer_config.json"])
    assert settings["chat_template"] == gguf_models.CHAT_TEMPLATE
    alone = llama.changed({**named, "tokenizer.chat_template": None})
    assert refusal(alone, tmp_path).field == "tokenizer.chat_template"
    unlisted = llama.changed({"tokenizer.chat_template.rag": "x"})
    assert refusal(unlisted, tmp_path).field == "tokenizer.chat_template.rag"
