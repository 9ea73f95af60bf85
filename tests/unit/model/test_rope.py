"""Rope is read from wherever transformers reads it, and gives the frequencies that it computes."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from services.common.errors import InvalidArgument
from services.engine.native.rope import rope_table
from services.model.config import parse_config
from tests.configs import LLAMA

LENGTH = LLAMA["max_position_embeddings"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 10 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
    "original_max_position_embeddings": 1024,
}
DROPPED = object()
GIVEN = {
    "nothing": {"rope_theta": DROPPED},
    "theta": {"rope_theta": 5e5},
    "theta inside": {"rope_theta": DROPPED, "rope_parameters": {"rope_theta": 7e4}},
    "theta inside and beside": {"rope_theta": 3e4, "rope_parameters": {"rope_theta": 7e4}},
    "null objects": {"rope_parameters": None, "rope_scaling": None},
    "empty scaling": {"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e4}},
    "scaling beats parameters": {"rope_scaling": YARN, "rope_parameters": LLAMA3},
    "scaling beats the theta of parameters": {
        "rope_theta": DROPPED,
        "rope_scaling": {"type": "linear", "factor": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "older type": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "both types": {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "original length beside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 256},
    "original length absent": {
        "rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
    },
    "yarn": {"rope_scaling": YARN},
    "yarn, one inside one beside": {
        "rope_scaling": YARN,
        "original_max_position_embeddings": 32,
    },
    "yarn of null factor": {"rope_scaling": {**YARN, "factor": None}},
    "yarn untruncated": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn with betas": {"rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2}},
    "yarn of null betas": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": 0}},
    "yarn with attention": {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    "yarn with mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn with one mscale": {"rope_scaling": {**YARN, "mscale": 0.7}},
    "yarn below 1": {"rope_scaling": {**YARN, "factor": 0.5}},
    "yarn of equal bounds": {
        "rope_scaling": {**YARN, "original_max_position_embeddings": 4},
        "rope_theta": 1e6,
    },
    "longrope": {"rope_scaling": LONG},
    "longrope with factor": {"rope_scaling": {**LONG, "factor": 3.0}},
    "longrope with attention": {"rope_scaling": {**LONG, "attention_factor": 1.25}},
    "proportional": {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
    "proportional in part": {
        "rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}
    },
    "unknown keys": {"rope_scaling": {**YARN, "finetuned": True}},
    "factor of one for heads": {"partial_rotary_factor": 1.0},
}


def _raw(changes):
    merged = {**LLAMA, **json.loads(json.dumps({**changes}, default=lambda _: "dropped"))}
    return {key: value for key, value in merged.items() if value != "dropped"}


def _reference(raw):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = json.loads(json.dumps(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
        return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("changes", GIVEN.values(), ids=GIVEN)
def test_frequencies_are_those_of_transformers(changes):
    config, reference = parse_config(_raw(changes)), _reference(_raw(changes))
    frequencies = torch.tensor(config.rope.frequencies)
    assert torch.allclose(frequencies, reference.inv_freq, rtol=2e-6, atol=0)
    assert config.rope.attention_factor == pytest.approx(reference.attention_scaling, rel=1e-9)


@pytest.mark.parametrize("changes", GIVEN.values(), ids=GIVEN)
def test_the_table_is_what_transformers_turns_by_within_the_context(changes):
    config, reference = parse_config(_raw(changes)), _reference(_raw(changes))
    count = config.context_length
    cosines, sines = reference(torch.zeros(1), torch.arange(count)[None])
    table = rope_table(config.rope, count, config.head_dim)
    assert torch.allclose(table[:, :16], cosines[0, :, :16], atol=3e-4)
    assert torch.allclose(table[:, 16:], sines[0, :, :16], atol=3e-4)


def test_longrope_ends_where_its_other_factors_would_begin():
    short = {**LONG, "original_max_position_embeddings": 100}
    assert parse_config({**LLAMA, "rope_scaling": short}).context_length == 100
    assert parse_config({**LLAMA, "rope_scaling": LONG}).context_length == LENGTH


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rope_theta", {"rope_theta": None}),
        ("rope_theta", {"rope_theta": "10000"}),
        ("rope_theta", {"rope_theta": -1.0}),
        ("rope_theta", {"rope_parameters": {"rope_theta": None}}),
        ("rope_theta", {"rope_scaling": YARN, "rope_theta": 1.0}),
        ("rope_parameters", {"rope_parameters": [1]}),
        ("rope_scaling", {"rope_scaling": "linear"}),
        ("rope_scaling.rope_type", {"rope_scaling": {"type": "su"}}),
        ("rope_scaling.rope_type", {"rope_scaling": {"type": "mrope"}}),
        ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": None}}),
        ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": ["yarn"]}}),
        (
            "rope_parameters.full_attention",
            {"rope_parameters": {"full_attention": {"rope_theta": 7e4, "rope_type": "default"}}},
        ),
        ("rope_scaling.mrope_section", {"rope_scaling": {"mrope_section": [1], "type": "default"}}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("factor", {"rope_scaling": {"type": "linear"}}),
        ("factor", {"rope_scaling": {"type": "linear", "factor": None}}),
        ("factor", {"rope_scaling": {"type": "dynamic", "factor": "2"}}),
        ("factor", {"rope_scaling": {**LLAMA3, "factor": None}}),
        ("factor", {"rope_scaling": {"type": "yarn"}}),
        ("truncate", {"rope_scaling": {**YARN, "truncate": 0}}),
        ("mscale", {"rope_scaling": {**YARN, "mscale": "x"}}),
        ("high_freq_factor", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}),
        ("short_factor", {"rope_scaling": {**LONG, "short_factor": [1.0]}}),
        ("long_factor", {"rope_scaling": {**LONG, "long_factor": None}}),
        (
            "original_max_position_embeddings",
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
        ),
        (
            "original_max_position_embeddings",
            {"rope_scaling": YARN, "original_max_position_embeddings": None},
        ),
    ],
)
def test_rope_that_cannot_be_followed_is_refused_by_field(field, changes):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**LLAMA, **changes})
    assert refused.value.field == field
    assert refused.value.message.startswith(f"config.json: {field}: ")


def test_a_rope_table_does_not_depend_on_how_many_positions_it_covers():
    rope = parse_config({**LLAMA, "rope_scaling": LLAMA3}).rope
    assert rope_table(rope, 7, rope.dim).equal(rope_table(rope, 500, rope.dim)[:7])
