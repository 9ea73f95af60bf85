"""What is read from config.json, and what is refused by name."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.engine.native.rope import rope_table
from services.model.config import Llama3Scaling, parse_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_llama_without_optional_fields_has_their_defaults(llama):
    for field in ("num_key_value_heads", "head_dim", "rope_theta", "tie_word_embeddings"):
        del llama[field]
    config = parse_config(llama)
    assert (config.kv_heads, config.head_dim) == (6, 16)
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None
    assert not config.tied_embeddings


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
def test_llama3_scaling_is_read_in_both_forms(llama, form):
    del llama["rope_theta"]
    given = {**LLAMA3, "rope_theta": 5e5} if form == "rope_parameters" else LLAMA3
    if form == "rope_scaling":
        llama["rope_theta"] = 5e5
    config = parse_config({**llama, form: given})
    assert config.rope_theta == 5e5
    assert config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_a_sliding_window_bounds_the_context(llama):
    raw = {**llama, "model_type": "mistral", "sliding_window": 128}
    assert parse_config(raw).context_length == 128


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt2"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("quantization_config", {"bits": 4}),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", 5),
        ("layer_types", [["full_attention"]]),
        ("hidden_size", 100),
        ("hidden_size", True),
        ("hidden_size", "96"),
        ("hidden_size", 1 << 60),
        ("intermediate_size", 0),
        ("num_hidden_layers", -1),
        ("num_key_value_heads", 4),
        ("head_dim", 40),
        ("vocab_size", 1.5),
        ("max_position_embeddings", None),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
    ],
)
def test_what_cannot_be_followed_is_refused_by_field(llama, field, value):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**llama, field: value})
    assert refused.value.field == field
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rope_parameters.rope_type", {"rope_type": "yarn"}),
        ("factor", {"factor": None}),
        ("high_freq_factor", {"high_freq_factor": 1.0}),
        ("original_max_position_embeddings", {"original_max_position_embeddings": 0}),
    ],
)
def test_rope_scaling_that_cannot_be_followed_is_refused_by_field(llama, field, change):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**llama, "rope_scaling": {**LLAMA3, **change}})
    assert refused.value.field == field


def test_rope_parameters_that_are_no_object_are_refused(llama):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**llama, "rope_parameters": [1]})
    assert refused.value.field == "rope_parameters"


def test_a_rope_table_does_not_depend_on_how_many_positions_it_covers(llama):
    config = parse_config({**llama, "rope_scaling": LLAMA3})
    assert rope_table(config, 7).equal(rope_table(config, 500)[:7])
