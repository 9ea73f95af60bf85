"""Shapes come from config.json, and a bad one names its field."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers

from services.common.errors import InvalidArgument, NotFound
from services.model.config import parse_config as read
from services.model.tensors import layer_shapes
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import described
from services.placement.estimate.model import load_model, parse_config
from services.placement.estimate.roofline import device

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 100,
    "pad_token_id": None,
}


def test_the_parameters_of_llama_70b_are_the_known_ones():
    model = load_model("llama-3.1-70b")
    assert model.layer_parameters == 855_654_400
    assert model.vocab_bytes == 2 * 128256 * 8192


def test_a_stated_head_dim_wins_over_the_quotient():
    model = load_model("qwen3-32b")
    assert (model.hidden // model.heads, model.head_dim) == (80, 128)
    assert parse_config(json.dumps(LLAMA)).head_dim == 8


def test_a_mistral_window_is_read():
    config = {**LLAMA, "model_type": "mistral", "sliding_window": 4096}
    assert parse_config(json.dumps(config)).window == 4096


def test_a_window_of_some_layers_counts_by_their_share():
    gemma = {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 100}
    model = parse_config(json.dumps({**LLAMA, **gemma}))
    assert [model.seen(positions) for positions in (60, 100, 1100)] == [60, 100, 600]
    assert parse_config(json.dumps(LLAMA)).seen(1100) == 1100


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "gemma2", "gemma3_text", "qwen2"])
def test_parameters_are_those_of_the_tensors_that_are_stored(model_type):
    raw = {**LLAMA, "model_type": model_type, "head_dim": 8}
    shapes = layer_shapes(read(raw)).values()
    assert parse_config(json.dumps(raw)).layer_parameters == sum(map(math.prod, shapes))


def test_a_config_is_found_in_its_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(str(tmp_path)).layers == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gpt2"}, "max_position_embeddings"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 65}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_experts": 8}, "num_experts"),
    ],
)
def test_a_bad_config_names_its_field(change, field):
    with pytest.raises(InvalidArgument) as caught:
        parse_config(json.dumps({**LLAMA, **change}))
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "nul"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_config(text)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFound, match="smollm2-135m"):
        load_model("no-such-model")


def test_heads_that_do_not_divide_forbid_a_degree():
    model = load_model("smollm2-135m")
    assert [n for n in range(1, 10) if model.allows_tp(n)] == [1, 3]


MIXTRAL = transformers.MixtralConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=100,
    architectures=["MixtralForCausalLM"],
)


def test_all_experts_are_held_and_some_are_passed():
    shape = parse_config(json.dumps(MIXTRAL.to_dict()))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(MIXTRAL)
    held = sum(p.numel() for p in model.model.layers[0].parameters())
    router = MIXTRAL.hidden_size * MIXTRAL.num_local_experts
    assert shape.layer_parameters == held - router
    assert (shape.experts, shape.experts_per_token) == (8, 2)


def test_stored_sizes_count_before_those_of_a_config():
    shape = parse_config(json.dumps(MIXTRAL.to_dict()), "m", (700, 1000, 3000, 2000, 900))
    assert (shape.layer_bytes, shape.vocab_bytes) == (3000, 900)
    assert shape.weight_bytes == 3000 / shape.layer_parameters
    with pytest.raises(InvalidArgument) as caught:
        parse_config(json.dumps(MIXTRAL.to_dict()), "m", (700, 1000))
    assert caught.value.field == "part_bytes"


def test_a_native_model_has_two_bytes_an_element_however_it_is_stored():
    stored = parse_config(json.dumps(LLAMA), "m", (1, 1, 1, 1, 1))
    assert stored == parse_config(json.dumps(LLAMA), "m")


def operations(shape, tokens):
    catalogue = load_catalogue()
    kind = described(catalogue, device_type="h100", device_count=1)
    rates = device(shape, kind, 1, load_calibration("nominal"), catalogue)
    return {op.name: op for op in rates.layer(float(tokens), 1.0, 1.0, 1.0)}


def test_a_step_reads_the_experts_that_its_tokens_pass():
    shape = parse_config(json.dumps(MIXTRAL.to_dict()))
    dense = replace(shape, experts=1, experts_per_token=1)
    alone, many = operations(shape, 1), operations(shape, 10_000)
    one = operations(dense, 1)["gate_up"]
    assert alone["gate_up"].traffic_s == pytest.approx(2 * one.traffic_s, rel=0.02)
    assert alone["gate_up"].compute_s > one.compute_s
    weights = 2 * shape.hidden * 2 * shape.ffn
    rows = 2 * 2 * 10_000 * (shape.hidden + 2 * shape.ffn)
    per_byte = one.traffic_s / (weights + 2 * (shape.hidden + 2 * shape.ffn))
    assert many["gate_up"].traffic_s == pytest.approx((8 * weights + rows) * per_byte)


def test_quantised_weights_are_read_as_they_are_stored():
    shape = parse_config(json.dumps(MIXTRAL.to_dict()))
    halved = replace(shape, stored_layer_bytes=shape.layer_bytes // 2)
    whole, half = operations(shape, 1)["qkv"], operations(halved, 1)["qkv"]
    assert half.traffic_s == pytest.approx(whole.traffic_s / 2, rel=0.05)
