"""Which layers slide and which are rotated, as transformers has it."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.model.config import parse_config

transformers = pytest.importorskip("transformers")
SMOLLM3: dict[str, Any] = {
    "model_type": "smollm3",
    "hidden_size": 96,
    "num_hidden_layers": 9,
    "vocab_size": 400,
    "pad_token_id": 0,
}
GEMMA3: dict[str, Any] = {
    **SMOLLM3,
    "model_type": "gemma3_text",
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "sliding_window": 40,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def _reference(raw: dict[str, Any]) -> Any:
    raw = dict(raw)
    return transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"no_rope_layer_interval": 3},
        {"no_rope_layers": [1, 0, 0, 1, 1, 0, 1, 1, 1]},
        {"no_rope_layers": [0] * 12},
        {"use_sliding_window": True, "sliding_window": 100},
        {"use_sliding_window": True, "sliding_window": None},
        {
            "use_sliding_window": True,
            "sliding_window": 100,
            "layer_types": [SLIDING, *[FULL] * 7, SLIDING],
        },
    ],
)
def test_layers_that_turn_and_layers_that_slide_are_those_of_smollm3(
    changes: dict[str, Any],
) -> None:
    raw = {**SMOLLM3, **changes}
    config, reference = parse_config(raw), _reference(raw)
    for layer in range(9):
        assert (config.rope_of(layer) is not None) == bool(reference.no_rope_layers[layer])
        slides = reference.layer_types[layer] == SLIDING
        assert config.window(layer) == (reference.sliding_window if slides else 0)


@pytest.mark.parametrize("changes", [{}, {"sliding_window_pattern": 2}, {"sliding_window": 9999}])
def test_layers_that_slide_turn_by_a_rope_of_their_own(changes: dict[str, Any]) -> None:
    """Whether or not their window is shorter than the context."""
    raw = {**GEMMA3, "max_position_embeddings": 512, **changes}
    config, reference = parse_config(raw), _reference(raw)
    for layer, kind in enumerate(reference.layer_types):
        slides = kind == SLIDING and reference.sliding_window < 512
        assert config.window(layer) == (reference.sliding_window if slides else 0)
        theta = reference.rope_parameters[kind]["rope_theta"]
        rope = config.rope_of(layer)
        assert rope is not None
        assert rope.frequencies[1] == pytest.approx(theta ** (-2 / config.head_dim))


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({**SMOLLM3, "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({**SMOLLM3, "no_rope_layers": [1.0] * 9}, "no_rope_layers"),
        ({**SMOLLM3, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({**SMOLLM3, "layer_types": [SLIDING] * 9}, "sliding_window"),
        ({**GEMMA3, "sliding_window": None}, "sliding_window"),
        ({**GEMMA3, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({**GEMMA3, "layer_types": [FULL]}, "layer_types"),
        ({**GEMMA3, "rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.rope_theta"),
        ({**GEMMA3, "rope_parameters": {FULL: 3}}, f"rope_parameters.{FULL}"),
        ({**GEMMA3, "rope_scaling": [1]}, "rope_scaling"),
        (
            {**GEMMA3, "rope_parameters": {}, "rope_scaling": {"factor": 8.0}},
            "rope_scaling",
        ),
        ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA3, "final_logit_softcapping": 30}, "final_logit_softcapping"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_field(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_config(raw)
    assert refused.value.field == field
