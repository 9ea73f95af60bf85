"""Which special tokens a model has, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from services.common.errors import InvalidArgument
from services.model.text import ModelText
from tests.tiny_model import model_files, tiny_tokenizer

SETTINGS: list[dict[str, Any]] = [
    {},
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": True}},
    {"bos_token": None, "pad_token": "[PAD]"},
    {"bos_token": "<s>", "extra_special_tokens": ["<a>", "<b>"]},
    {"additional_special_tokens": ["<a>"], "image_token": "<image>"},
    {"extra_special_tokens": {"image_token": "<image>"}},
    {
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {
            "303": {"content": "<new>", "special": True},
            "304": {"content": "<plain>", "special": False},
        },
    },
]
MAPS: list[dict[str, Any]] = [
    {},
    {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"},
    {"eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False}},
    {"additional_special_tokens": ["<c>"]},
]
TEMPLATE = (
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}{{ messages[0].content }}"
)


@pytest.mark.parametrize("special_map", MAPS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_special_tokens_are_those_of_transformers(
    tmp_path: Path, settings: dict[str, Any], special_map: dict[str, Any]
) -> None:
    files = model_files(tiny_tokenizer()) | {
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE, **settings}).encode(),
        "special_tokens_map.json": json.dumps(special_map).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = ModelText({"eos_token_id": 1}, 400, files)
    assert ours.template is not None
    assert ours.template.variables == theirs.special_tokens_map
    added = theirs.added_tokens_decoder
    special = {t.content: token_id for token_id, t in added.items() if t.special}
    assert ours.tokenizer.special_ids == special
    text = "a <image> <a> <b> <c> [PAD] <s> <new> <plain> <|im_end|> b"
    assert ours.tokenizer.encode(text) == theirs(text)["input_ids"]


def test_a_named_token_is_special_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    files = model_files(tiny_tokenizer())
    tokenizer = json.loads(files["tokenizer.json"])
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    files |= {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>"}).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = ModelText({}, 400, files).tokenizer
    end = ours.special_ids["<|im_end|>"]
    assert ours.vocabulary.piece(end) == b""
    assert theirs.decode([end], skip_special_tokens=True) == ""
    added = theirs.added_tokens_decoder
    assert ours.special_ids == {t.content: i for i, t in added.items() if t.special}


@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_template", "{{ 1 }}"), ("split_special_tokens", True), ("add_eos_token", True)],
)
def test_a_setting_among_the_special_tokens_is_refused(name: str, value: Any) -> None:
    files = model_files(tiny_tokenizer())
    files["special_tokens_map.json"] = json.dumps({name: value}).encode()
    with pytest.raises(InvalidArgument, match=r"special_tokens_map\.json") as refused:
        ModelText({"eos_token_id": 1}, 400, files)
    assert refused.value.field == name
