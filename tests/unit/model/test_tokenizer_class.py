"""Which class makes a tokenizer of the files, and what it makes of them, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.common.errors import InvalidArgument
from services.model.text import ModelText
from services.model.tokenizer_class import GGUF, MADE_FROM
from tests.npm_tokenizers import folder
from tests.text_mutants import CONFIG, SETTINGS, VOCABULARY_SIZE, bases

TEXT = " the  cat 12.5 é e\u0301 </s> the<|turn|> house\n\n"
KINDS = ("byte-level", "byte fallback", "llama 3", "qwen")
OTHERS = (
    *("mixtral", "phi3", "glm4", "arcee"),
    *("qwen3_moe", "gpt_neox", "olmoe", "gpt2", "starcoder2"),
)
CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
)


def _files(kind: str, model_type: str, **settings: Any) -> dict[str, bytes]:
    files = dict(bases()[kind])
    config = json.loads(files[CONFIG]) | {"model_type": model_type}
    said = json.loads(files[SETTINGS]) | settings
    return files | {CONFIG: json.dumps(config).encode(), SETTINGS: json.dumps(said).encode()}


def _ours(files: dict[str, bytes]) -> ModelText:
    return ModelText(json.loads(files[CONFIG]), VOCABULARY_SIZE, files)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_class_that_transformers_takes(
    tmp_path: Path, kind: str, name: str | None, model_type: str
) -> None:
    _check_ids(tmp_path, kind, name, model_type)


@pytest.mark.parametrize("model_type", OTHERS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("byte-level", None),
        ("byte-level", "GPT2Tokenizer"),
        ("byte-level", "GPTNeoXTokenizerFast"),
        ("byte-level", "LlamaTokenizer"),
        ("byte fallback", "LlamaTokenizerFast"),
        ("qwen", "PreTrainedTokenizerFast"),
    ],
)
def test_ids_of_other_families_are_those_of_the_class_that_transformers_takes(
    tmp_path: Path, kind: str, name: str | None, model_type: str
) -> None:
    _check_ids(tmp_path, kind, name, model_type)


@pytest.mark.parametrize("model_type", OTHERS)
def test_the_same_files_make_another_tokenizer_where_the_family_says_so(model_type: str) -> None:
    """Else the comparison with transformers could not tell classes apart."""
    ours = _ours(_files("llama 3", model_type, tokenizer_class=None)).tokenizer.encode(TEXT)
    file = _ours(_files("llama 3", "llama", tokenizer_class=None)).tokenizer.encode(TEXT)
    follows = ("mixtral", "phi3", "glm4", "arcee")
    assert (ours == file) is (model_type in follows)


def _check_ids(tmp_path: Path, kind: str, name: str | None, model_type: str) -> None:
    files = _files(kind, model_type, tokenizer_class=name)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert _ours(files).tokenizer.encode(TEXT) == theirs(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"legacy": True}, False),
        ({"legacy": False}, True),
        ({"legacy": None}, True),
        ({"add_prefix_space": False}, False),
        ({"add_prefix_space": None}, True),
    ],
)
def test_a_llama_tokenizer_prefixes_as_its_settings_say(
    tmp_path: Path, settings: dict[str, Any], *, same: bool
) -> None:
    files = _files("llama 2", "llama", **settings)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat</s>the dog"
    ids = _ours(files).tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert (ids == _ours(bases()["llama 2"]).tokenizer.encode(text)) is same


@pytest.mark.parametrize("name", ["BertTokenizer", "OurTokenizer", "", 7])
def test_another_class_is_refused_by_name(name: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"tokenizer_config\.json: tokenizer_class: "):
        _ours(_files("byte-level", "llama", tokenizer_class=name))


def test_a_class_for_bpe_takes_no_other_model() -> None:
    with pytest.raises(InvalidArgument, match=r"model\.type is BPE"):
        _ours(_files("unigram", "llama", tokenizer_class="LlamaTokenizer"))


def test_what_was_made_of_a_gguf_file_is_followed_whatever_the_model() -> None:
    as_it_is = _ours(_files("llama 3", "llama"))
    made = _ours(_files("llama 3", "qwen2", **{MADE_FROM: GGUF}))
    other = _ours(_files("llama 3", "qwen2"))
    ids = as_it_is.tokenizer.encode(TEXT)
    assert made.tokenizer.encode(TEXT) == ids
    assert other.tokenizer.encode(TEXT) != ids


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        *(("llama2", "llama"), ("llama2", "phi3"), ("qwen3", "qwen3"), ("gemma", "llama")),
        *(("gemma", "gemma2"), ("gemma", "gemma3_text")),
        *(("llama3_1", "granite"), ("llama3_1", "olmo2"), ("llama3_1", "smollm3")),
    ],
)
def test_files_that_people_use_are_read_by_their_class(
    tmp_path: Path, name: str, model_type: str, *, named: bool
) -> None:
    files = {path.name: path.read_bytes() for path in folder(name).iterdir()}
    if not named:
        settings = json.loads(files[SETTINGS])
        settings.pop("tokenizer_class", None)
        files[SETTINGS] = json.dumps(settings).encode()
    config = {"model_type": model_type, "eos_token_id": 2}
    files[CONFIG] = json.dumps(config).encode()
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = ModelText(config, len(theirs), files)
    for text in (TEXT, "Hello", " Hello  12 <|im_end|> \u6771\u4eac", "<s> a </s>b"):
        assert ours.tokenizer.encode(text) == theirs(text)["input_ids"]
