"""Shapes come from config.json, and a bad one names its field."""

from __future__ import annotations

import json

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.placement.estimate.model import load_model, parse_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 100,
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


def test_a_config_is_found_in_its_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(str(tmp_path)).layers == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gpt2"}, "model_type"),
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
