"""Settings of a tokenizer: what transformers does not load, and what is not followed, by name."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.model.tokenizer_settings import check_settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("padding_side", "middle"),
        ("truncation_side", None),
        ("model_max_length", "x"),
        ("max_len", "x"),
        ("model_input_names", None),
        ("chat_control_tokens", "x"),
        ("legacy", "x"),
        ("add_prefix_space", 1),
        ("clean_up_tokenization_spaces", "x"),
        ("split_special_tokens", True),
        ("split_special_tokens", None),
        ("fix_mistral_regex", True),
        ("fast_tokenizer_files", ["tokenizer.4.0.json"]),
        ("post_processor", {}),
        ("vocab", {}),
        ("init_inputs", ["x"]),
        ("auto_map", None),
        ("auto_map", ["tokenization_ours.Ours", None]),
        ("auto_map", {"AutoTokenizer": ["tokenization_ours.Ours", None]}),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"tokenizer_config.json: {field}: ") as refused:
        check_settings({field: value})
    assert refused.value.field == field


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding_side": "left", "truncation_side": "right"},
        {"model_max_length": 1e30},
        {"model_max_length": -1, "max_len": None},
        {"add_bos_token": "x", "errors": 7, "processor_class": None, "unheard": {}},
        {"auto_map": {"AutoProcessor": "processing_ours.Ours"}},
        {"split_special_tokens": False, "legacy": None, "merges": None, "init_inputs": []},
    ],
)
def test_what_changes_no_text_is_taken(settings: dict[str, Any]) -> None:
    check_settings(settings)
