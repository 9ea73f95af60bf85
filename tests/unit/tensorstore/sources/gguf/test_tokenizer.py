"""The vocabulary of a GGUF file gives the ids that transformers gives for it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer

from services.common.errors import InvalidArgument
from services.model.tokenizer import Tokenizer as Served
from services.tensorstore.sources.gguf import vocabulary as gguf_vocabulary
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.gguf.metadata import Metadata
from tests import gguf_models
from tests.npm_tokenizers import folder

TEXTS = [
    "the capital of France",
    " the  river\n\n through\tit ",
    "  two",
    "they'll SAY it's 1984 or 20012",
    "naïve façade 日本語 🙂 zebra",
    "a\nb\r\n c",
    "<s>it is</s> the <|im_start|>user\n x<|im_end|>",
    "CamelCaseWord HTTPServer",
    "\u0000\u0001 \u200b\u00ad",
    "",
    " ",
    "  zebra",
]


def tokenizers(
    directory: Path, vocabulary: Mapping[str, Any], family: str = "llama"
) -> tuple[Tokenizer, Any]:
    """Ours and transformers' reading of one file."""
    from transformers import AutoTokenizer

    path = gguf_models.model(family, vocabulary, layers=1).write(directory / "tiny.gguf")
    checkpoint = GgufCheckpoint(path)
    checkpoint.close()
    ours = Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode())
    return ours, AutoTokenizer.from_pretrained(directory, gguf_file=path.name)


SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "scores alone": {},
    "no bos": {"tokenizer.ggml.add_bos_token": False},
    "eos too": {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
    "merges": {"tokenizer.ggml.merges": ["h e", "t he", "\u2581 the", "i s"]},
}


@pytest.mark.parametrize("changes", SENTENCEPIECE.values(), ids=SENTENCEPIECE.keys())
def test_a_sentencepiece_vocabulary_gives_the_ids_of_transformers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    ours, theirs = tokenizers(tmp_path, {**gguf_models.sentencepiece(), **changes})
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        shown = ours.decode(ids, skip_special_tokens=False)
        assert shown == theirs.decode(ids, clean_up_tokenization_spaces=False), text


@pytest.mark.parametrize("seed", range(1, 6))
def test_merges_follow_from_scores_as_in_transformers(tmp_path: Path, seed: int) -> None:
    ours, theirs = tokenizers(tmp_path, gguf_models.sentencepiece(seed))
    found = json.loads(ours.to_str())["model"]["merges"]
    assert found == json.loads(theirs.backend_tokenizer.to_str())["model"]["merges"]


def test_a_vocabulary_without_a_prefix_space_has_none(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.add_space_prefix": False}
    ours, _ = tokenizers(tmp_path, {**gguf_models.sentencepiece(), **changes})
    assert ours.encode("the", add_special_tokens=False).tokens[0][0] == "t"
    assert Served(ours.to_str().encode()).vocabulary.leading_spaces == 0


def test_the_first_space_of_a_sentencepiece_text_belongs_to_the_encoding(tmp_path: Path) -> None:
    ours, _ = tokenizers(tmp_path, gguf_models.sentencepiece())
    assert Served(ours.to_str().encode()).vocabulary.leading_spaces == 1


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("changes", [{}, {"tokenizer.ggml.add_eos_token": True}], ids=["", "eos"])
def test_a_gemmas_vocabulary_gives_the_ids_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    ours, theirs = tokenizers(tmp_path, {**gguf_models.gemma_pieces(), **changes}, family)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        shown = ours.decode(ids, skip_special_tokens=False)
        assert shown == theirs.decode(ids, clean_up_tokenization_spaces=False), text
        assert shown == text
    assert Served(ours.to_str().encode()).vocabulary.leading_spaces == 0


def test_merges_of_a_gemma_are_those_of_its_published_tokenizer() -> None:
    """Of its first pieces; runs of tabs apart, which stand elsewhere in the published order."""
    published = json.loads((folder("gemma") / "tokenizer.json").read_bytes())["model"]
    pieces = sorted(published["vocab"], key=published["vocab"].__getitem__)[:20_000]
    kept = frozenset(pieces)
    wanted = [
        merge
        for merge in (line.split(" ") for line in published["merges"])
        if kept.issuperset(merge) and "".join(merge) in kept and "\t" not in "".join(merge)
    ]
    metadata = Metadata({})
    made = gguf_vocabulary.gemma_pieces(metadata, pieces, [1] * len(pieces))
    found = json.loads(made.tokenizer.to_str())["model"]["merges"]
    assert [merge for merge in found if "\t" not in "".join(merge)] == wanted
    assert len(wanted) > 10_000


def test_a_run_of_spaces_that_occurs_twice_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        gguf_vocabulary.gemma_pieces(Metadata({}), ["a", "  ", "\u2581\u2581"], [1, 4, 1])
    assert refused.value.field == "tokenizer.ggml.tokens"


BYTE_LEVEL = [pre for pre in gguf_vocabulary.SPLITTINGS if pre not in ("default", "gpt-2")]


@pytest.mark.parametrize("pre", BYTE_LEVEL)
@pytest.mark.parametrize("adds", [(), ("bos",), ("bos", "eos")], ids=["plain", "bos", "both"])
def test_a_byte_level_vocabulary_gives_the_ids_of_transformers(
    tmp_path: Path, pre: str, adds: tuple[str, ...]
) -> None:
    flags = {f"tokenizer.ggml.add_{name}_token": name in adds for name in ("bos", "eos")}
    family = "qwen2" if "qwen" in pre else "llama"
    ours, theirs = tokenizers(tmp_path, {**gguf_models.byte_level(pre), **flags}, family)
    splitting = gguf_vocabulary.SPLITTINGS[pre]
    # The models' own tokenizer.json say these two; transformers' reader of GGUF files does not.
    theirs.backend_tokenizer.model.ignore_merges = splitting.ignore_merges
    if splitting.digits:
        theirs.backend_tokenizer.pre_tokenizer = ours.pre_tokenizer
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_the_expressions_are_those_of_transformers() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    ours = {
        pre: splitting.pattern
        for pre, splitting in gguf_vocabulary.SPLITTINGS.items()
        if splitting.pattern is not None
    }
    assert ours == {pre: GGUF_PRE_TOKENIZER_SPLITS[pre] for pre in ours}
    assert len(ours) > 8
    for pattern in ours.values():
        Regex(pattern)


def test_a_word_of_a_llama_3_vocabulary_needs_no_merges(tmp_path: Path) -> None:
    ours, _ = tokenizers(tmp_path, gguf_models.byte_level("llama-bpe"))
    assert ours.encode(" zebra", add_special_tokens=False).tokens == ["Ġzebra"]
    plain, _ = tokenizers(tmp_path, gguf_models.byte_level("dbrx"))
    assert len(plain.encode(" zebra").tokens) > 1


def test_a_llama_3_vocabulary_that_does_not_say_so_begins_with_bos(tmp_path: Path) -> None:
    ours, _ = tokenizers(tmp_path, gguf_models.byte_level("llama-bpe"))
    assert ours.encode("x").tokens[0] == "<|endoftext|>"
    plain, _ = tokenizers(tmp_path, gguf_models.byte_level("qwen2"), "qwen2")
    assert plain.encode("x").tokens[0] == "x"


def test_a_qwen_vocabulary_composes_characters(tmp_path: Path) -> None:
    ours, _ = tokenizers(tmp_path, gguf_models.byte_level("qwen2"), "qwen2")
    assert ours.encode("fac\u0327ade").ids == ours.encode("fa\u00e7ade").ids


def test_user_defined_tokens_are_found_whole_and_shown(tmp_path: Path) -> None:
    vocabulary = gguf_models.byte_level("qwen2")
    kinds = [*vocabulary["tokenizer.ggml.token_type"]]
    kinds[-2] = 4
    ours, theirs = tokenizers(tmp_path, {**vocabulary, "tokenizer.ggml.token_type": kinds}, "qwen2")
    text = "x<|im_start|>y"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text).ids) == text
