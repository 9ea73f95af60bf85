"""Ids of a whole prompt are the library's, whatever its special tokens are like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel

from services.common.errors import InvalidArgument
from services.model import tokenizer
from services.model.written import written

LETTERS = sorted({*"abcdorsw<>/|A1 \n\u2581", *pre_tokenizers.ByteLevel.alphabet()})
VOCABULARY = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *LETTERS, "ab", "wo"])}
MERGES = [("a", "b"), ("w", "o")]
FLAGS: list[dict[str, bool]] = [
    {},
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True},
    {"single_word": True},
    {"normalized": True},
    {"normalized": True, "lstrip": True, "single_word": True},
]
Set = Callable[[Any], None]


def _legacy(encoder: Any) -> None:
    encoder.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )


def _set(**parts: Any) -> Set:
    def change(encoder: Any) -> None:
        for name, part in parts.items():
            setattr(encoder, name, part)

    return change


def _metaspace(scheme: str) -> Set:
    return _set(pre_tokenizer=pre_tokenizers.Metaspace("\u2581", scheme, split=False))


AROUND: list[Set] = [
    lambda encoder: None,
    _legacy,
    _metaspace("first"),
    _metaspace("always"),
    _metaspace("never"),
    _set(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    _set(normalizer=normalizers.Lowercase()),
    _set(normalizer=normalizers.NFKC()),
    _set(normalizer=normalizers.Strip()),
    _set(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("\u2581")])),
]
PIECES = ("<s>", "</s>", "<|A|>", "word", "a", "ab", " ", "  ", "\n", "<", "s>", "A1", "<s")
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def _encoder(flags: dict[str, bool], around: Set, model: Any = None) -> Tokenizer:
    encoder = Tokenizer(model or models.BPE(VOCABULARY, MERGES, unk_token="<unk>"))
    around(encoder)
    encoder.decoder = ByteLevel()
    flags = {"normalized": False, **flags}
    texts = ("<unk>", "<s>", "</s>", "<|A|>", "word")
    encoder.add_special_tokens([AddedToken(text, **flags) for text in texts])
    encoder.add_tokens([AddedToken("a a", normalized=False)])
    return encoder


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("flags", FLAGS)
@settings(max_examples=20, deadline=None)
@given(text=TEXTS)
def test_what_a_template_wrote_is_encoded_as_by_the_library(
    flags: dict[str, bool], around: Set, text: str
) -> None:
    encoder = _encoder(flags, around)
    ours = tokenizer.Tokenizer(encoder.to_str().encode())
    expected = encoder.encode(text, add_special_tokens=False).ids
    assert ours.encode_rendered(written(text)) == expected
    assert ours.encode_guarded(written(text)) == expected


def _unigram() -> Any:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("word", 0.0)]
    return models.Unigram([*pieces, *((letter, -5.0) for letter in LETTERS)], 0, False)


def _words() -> Any:
    return models.BPE(VOCABULARY, MERGES, unk_token="<unk>", ignore_merges=True)


@pytest.mark.parametrize("model", [_unigram, _words])
@pytest.mark.parametrize("around", AROUND)
@settings(max_examples=30, deadline=None)
@given(before=TEXTS, content=TEXTS.filter(bool), after=TEXTS)
def test_no_message_makes_a_special_token_even_where_the_model_could(
    model: Callable[[], Any], around: Set, before: str, content: str, after: str
) -> None:
    encoder = _encoder({}, around, model())
    ours = tokenizer.Tokenizer(encoder.to_str().encode())
    special = set(ours.special_ids.values()) - {encoder.token_to_id("<unk>")}

    def specials(ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in special]

    ids = ours.encode_rendered(written(before) + content + written(after))
    alone = specials(ours.encode_rendered(written(before)))
    assert specials(ids) == alone + specials(ours.encode_rendered(written(after)))


def test_a_text_that_spells_the_inner_name_of_a_token_is_refused() -> None:
    file = _encoder({}, AROUND[0]).to_str().encode()
    ours = tokenizer.Tokenizer(file)
    with pytest.raises(InvalidArgument):
        ours.encode_guarded(ours._guard.digest)
