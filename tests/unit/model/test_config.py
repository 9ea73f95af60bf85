"""A config is read as transformers reads it, and what cannot be followed is refused by name."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.model.config import parse_config
from services.model.families import FAMILIES
from tests.configs import LLAMA, QWEN3


def _reference(raw):
    transformers = pytest.importorskip("transformers")
    raw = dict(raw)
    return transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_silent_config_has_the_defaults_of_its_family(model_type):
    reference, config = (
        _reference({"model_type": model_type}),
        parse_config({"model_type": model_type}),
    )
    assert config.hidden_size == reference.hidden_size
    assert config.intermediate_size == reference.intermediate_size
    assert config.layer_count == reference.num_hidden_layers
    assert config.heads == reference.num_attention_heads
    assert config.kv_heads == reference.num_key_value_heads
    quotient = reference.hidden_size // reference.num_attention_heads
    assert config.head_dim == getattr(reference, "head_dim", quotient)
    assert config.vocab_size == reference.vocab_size
    assert config.context_length == reference.max_position_embeddings
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.tied_embeddings == reference.tie_word_embeddings
    window = getattr(reference, "sliding_window", None) or 0
    kinds = getattr(reference, "layer_types", None) or ["sliding_attention"] * config.layer_count
    assert [config.window(layer) for layer in range(config.layer_count)] == [
        window if kind == "sliding_attention" else 0 for kind in kinds
    ]
    assert config.score_scale == pytest.approx(_scale(reference, config.head_dim))


def _scale(reference, head_dim):
    if hasattr(reference, "attention_multiplier"):
        return reference.attention_multiplier
    return getattr(reference, "query_pre_attn_scalar", head_dim) ** -0.5


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_null_kv_heads_are_as_many_as_heads(model_type):
    raw = {**LLAMA, "model_type": model_type, "num_key_value_heads": None}
    assert parse_config(raw).kv_heads == _reference(raw).num_key_value_heads == 6


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_null_head_size_is_the_quotient(model_type):
    raw = {**LLAMA, "model_type": model_type, "head_dim": None}
    assert parse_config(raw).head_dim == _reference(raw).head_dim == 16


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama", "attention_bias": True}, (True, True, False)),
        ({"model_type": "llama", "mlp_bias": True}, (False, False, True)),
        ({"model_type": "qwen3", "attention_bias": True}, (True, True, False)),
        ({"model_type": "qwen2"}, (True, False, False)),
        ({"model_type": "qwen2", "attention_bias": False}, (True, False, False)),
        ({"model_type": "mistral", "attention_bias": True}, (False, False, False)),
        ({"model_type": "qwen3", "mlp_bias": True}, (False, False, False)),
    ],
)
def test_biases_are_those_that_transformers_makes(changes, expected):
    transformers = pytest.importorskip("transformers")
    raw = {**LLAMA, "num_hidden_layers": 1, **changes}
    config = parse_config(raw)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == expected
    names = set(transformers.AutoModelForCausalLM.from_config(_reference(raw)).state_dict())
    assert expected == tuple(
        f"model.layers.0.{part}.bias" in names
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 128}, (128,) * 5),
        ({"model_type": "mistral", "sliding_window": None}, ()),
        ({"model_type": "mistral", "sliding_window": 512}, ()),
        ({"model_type": "llama", "sliding_window": 128}, ()),
        ({"model_type": "qwen2", "sliding_window": 128}, ()),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 128,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            (0, 0, 0, 128, 128),
        ),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9}, ()),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", *["full_attention"] * 4],
            },
            (9, 0, 0, 0, 0),
        ),
        ({"model_type": "llama", "layer_types": ["full_attention"] * 5}, ()),
    ],
)
def test_windows_are_each_layers_own_and_shorten_no_context(changes, expected):
    config = parse_config({**LLAMA, **changes})
    assert config.windows == expected
    assert config.context_length == 512
    if "layer_types" not in changes and "qwen" in changes["model_type"]:
        kinds = _reference({**LLAMA, **changes}).layer_types
        assert [kind == "sliding_attention" for kind in kinds] == [
            bool(config.window(layer)) for layer in range(5)
        ]


def test_dtype_counts_before_its_older_name():
    parse_config({**LLAMA, "dtype": "bfloat16", "torch_dtype": "int8"})
    parse_config({**LLAMA, "dtype": None, "torch_dtype": "float16"})
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**LLAMA, "dtype": "int8", "torch_dtype": "bfloat16"})
    assert refused.value.field == "dtype"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt2"),
        ("model_type", None),
        ("model_type", ["llama"]),
        ("architectures", ["GPT2LMHeadModel"]),
        ("architectures", "LlamaForCausalLM"),
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("hidden_activation", "gelu"),
        ("attention_bias", None),
        ("attention_bias", 1),
        ("mlp_bias", "true"),
        ("quantization_config", {"bits": 4}),
        ("quantization_config", {}),
        ("per_layer_config", {"0": {"head_dim": 8}}),
        ("num_local_experts", 8),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["full_attention"]),
        ("layer_types", 5),
        ("layer_types", [["full_attention"]]),
        ("hidden_size", 100),
        ("hidden_size", True),
        ("hidden_size", "96"),
        ("hidden_size", 1 << 60),
        ("intermediate_size", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 1 << 20),
        ("num_key_value_heads", 4),
        ("head_dim", 41),
        ("head_dim", 0),
        ("vocab_size", 1.5),
        ("max_position_embeddings", None),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 1),
        ("tie_word_embeddings", None),
        ("torch_dtype", "int8"),
        ("pad_token_id", 515),
        ("pad_token_id", "0"),
        ("eos_token_id", ["2"]),
        ("use_cache", "yes"),
        ("initializer_range", 2.0),
    ],
)
def test_what_cannot_be_followed_is_refused_by_field(llama, field, value):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**llama, field: value})
    assert refused.value.field == field
    assert refused.value.message.startswith(f"config.json: {field}: ")
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("head_dim", {"model_type": "qwen3", "head_dim": None}),
        ("num_key_value_heads", {"model_type": "mistral", "num_key_value_heads": None}),
        ("sliding_window", {"model_type": "mistral", "sliding_window": 0}),
        ("use_sliding_window", {"model_type": "qwen2", "use_sliding_window": None}),
        ("max_window_layers", {"model_type": "qwen2", "max_window_layers": None}),
        ("sliding_window", {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 5}),
    ],
)
def test_what_a_family_does_not_take_is_refused_by_field(field, changes):
    with pytest.raises(InvalidArgument) as refused:
        parse_config({**LLAMA, **changes})
    assert refused.value.field == field


def test_qwen3_is_read_with_its_norms_and_llama_without():
    assert parse_config(QWEN3).qk_norm
    assert not parse_config(LLAMA).qk_norm
