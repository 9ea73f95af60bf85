"""What an import finds out about a model's text, named by file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.model.text_check import check_text
from services.model.tokenizer_settings import CLEAN_UP_BPE
from tests.tiny_model import model_files, tiny_tokenizer

FILES = model_files(tiny_tokenizer())
SIZE = 303
Change = Callable[[dict[str, bytes]], None]


def _json(file: str, **changes: Any) -> Change:
    """Changes to a JSON file's entries."""

    def change(files: dict[str, bytes]) -> None:
        content = json.loads(files.get(file, b"{}")) | changes
        files[file] = json.dumps(content).encode()

    return change


def _file(file: str, content: bytes) -> Change:
    return lambda files: files.update({file: content})


def _only(*names: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        for name in FILES.keys() - names:
            del files[name]

    return change


def _instead(files: dict[str, bytes]) -> None:
    del files["tokenizer.json"]
    files |= {"vocab.json": b"{}", "merges.txt": b""}


def _same_id(files: dict[str, bytes]) -> None:
    content = json.loads(files["tokenizer.json"])
    content["model"]["vocab"]["a"] = content["model"]["vocab"]["b"]
    files["tokenizer.json"] = json.dumps(content).encode()


def test_a_sound_model_is_taken() -> None:
    check_text({}, SIZE, FILES)


TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION = "generation_config.json"
WORDPIECE = {"type": "WordPiece", "prefix": "##", "cleanup": True}
STRIDES = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9}
STRIP = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
PIECES = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}
FUSED = {"type": "Sequence", "decoders": [{"type": "Fuse"}, STRIP]}


@pytest.mark.parametrize(
    ("change", "file", "field"),
    [
        (lambda files: files.pop(TOKENIZER), TOKENIZER, TOKENIZER),
        (_instead, "vocab.json and merges.txt", TOKENIZER),
        (_file(TOKENIZER, b"version https://git-lfs"), TOKENIZER, TOKENIZER),
        (_json(TOKENIZER, model={"type": "BPE", "vocab": [], "merges": 3}), TOKENIZER, TOKENIZER),
        (_json(TOKENIZER, decoder=None), TOKENIZER, "decoder"),
        (_json("added_tokens.json", new=7), "added_tokens.json", "new"),
        (_file("added_tokens.json", b"\xff"), "added_tokens.json", "added_tokens.json"),
        (_json(TOKENIZER, truncation=STRIDES), TOKENIZER, "truncation"),
        (_same_id, TOKENIZER, "model.vocab"),
        (_json(CONFIG, added_tokens_decoder=None), CONFIG, "added_tokens_decoder"),
        (_json(CONFIG, added_tokens_decoder={"3": "x"}), CONFIG, "added_tokens_decoder"),
        (_json(CONFIG, pad_token={"content": "<pad>"}), CONFIG, "pad_token"),
        (_json(CONFIG, **{CLEAN_UP_BPE: True}), CONFIG, CLEAN_UP_BPE),
        (_json(GENERATION, pad_token_id=[1]), GENERATION, "pad_token_id"),
        (_json(TOKENIZER, decoder=WORDPIECE), TOKENIZER, "decoder"),
        (_json(TOKENIZER, decoder=FUSED), TOKENIZER, "decoder"),
        (_json(TOKENIZER, decoder=PIECES), TOKENIZER, "decoder"),
        (_file(CONFIG, b"["), CONFIG, CONFIG),
        (_file(CONFIG, b"[]"), CONFIG, CONFIG),
        (_json(CONFIG, chat_template="{% if %}"), "line 1", "chat_template"),
        (_json(CONFIG, chat_template=7), CONFIG, "chat_template"),
        (_json(CONFIG, chat_template=["x"]), CONFIG, "chat_template"),
        (_json(CONFIG, chat_template="{{ 1 // 0 }}"), CONFIG, "chat_template"),
        (_json(CONFIG, chat_template="{{ raise_exception('no') }}"), CONFIG, "chat_template"),
        (_file("chat_template.jinja", b"{{ x"), "line 1", "chat_template"),
        (_file("chat_template.jinja", b"\xff"), "chat_template.jinja", "chat_template.jinja"),
        (
            _json(CONFIG, chat_template="{{ '%s' | format('<|im_end|>') | wordwrap(99) }}"),
            CONFIG,
            "chat_template",
        ),
        (_json(CONFIG, chat_template=""), "no tokens", "chat_template"),
        (_json(CONFIG, bos_token={"text": "<s>"}), CONFIG, "bos_token"),
        (
            _json(CONFIG, added_tokens_decoder={"x": {"content": "y"}}),
            CONFIG,
            "added_tokens_decoder",
        ),
        (_json(CONFIG, split_special_tokens=True), CONFIG, "split_special_tokens"),
        (_json(GENERATION, eos_token_id="7"), GENERATION, "eos_token_id"),
        (_json(GENERATION, temperature=-1), GENERATION, "temperature"),
        (_json(GENERATION, top_p="0.9"), GENERATION, "top_p"),
        (_only(TOKENIZER), GENERATION, "eos_token_id"),
    ],
)
def test_what_no_router_can_serve_is_refused_by_file_and_field(
    change: Change, file: str, field: str
) -> None:
    files = dict(FILES)
    change(files)
    with pytest.raises(InvalidArgument) as refused:
        check_text({}, SIZE, files)
    assert refused.value.field == field
    assert file in refused.value.message


def test_a_vocabulary_larger_than_the_models_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="vocab_size"):
        check_text({"eos_token_id": 5}, 200, FILES)


def test_added_tokens_beyond_the_models_vocabulary_are_taken_unless_they_are_needed() -> None:
    base = len(tiny_tokenizer().get_vocab(with_added_tokens=False))
    files = dict(FILES)
    _json(CONFIG, pad_token="[PAD]")(files)
    check_text({}, SIZE, files)
    with pytest.raises(InvalidArgument, match="vocab_size"):
        check_text({"eos_token_id": 5}, base, files)


def test_a_model_without_a_chat_template_is_taken() -> None:
    files = dict(FILES)
    _file(CONFIG, b'{"eos_token": "<|im_end|>"}')(files)
    check_text({}, SIZE, files)
