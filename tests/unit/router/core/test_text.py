from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Encoder

from services.common.generation import FinishReason, GenerationKind, GenerationRequest
from services.model.tokenizer import Tokenizer
from services.router.core.text import ChoiceText, StopString
from tests.tiny_model import tiny_tokenizer

ENCODER = tiny_tokenizer()
ENCODER.encode_special_tokens = True  # one that is spelt in a text is text
EOS = ENCODER.token_to_id("<|im_end|>")
VOCABULARY = Tokenizer(ENCODER.to_str().encode()).vocabulary
Make = Callable[..., GenerationRequest]
TEXTS = st.text(st.sampled_from("aé東🚀 \n") | st.characters(exclude_categories=("Cs",)))


def _ids(text: str) -> list[int]:
    ids: list[int] = ENCODER.encode(text, add_special_tokens=False).ids
    return ids


def _shown(request: GenerationRequest, ids: list[int]) -> list[str]:
    """E(0), E(1), … E(len(ids))."""
    text = ChoiceText(request, VOCABULARY)
    shown = [""]
    for token_id in ids:
        shown.append(shown[-1] + text.feed([token_id]))
    return shown


@given(st.lists(st.integers(0, EOS + 1), min_size=1, max_size=60))
def test_increments_of_any_ids_concatenate_to_the_full_decode(
    make_request: Make, ids: list[int]
) -> None:
    request = make_request(max_tokens=len(ids), ignore_eos=True)
    assert _shown(request, ids)[-1] == ENCODER.decode(ids, skip_special_tokens=True)


@given(TEXTS)
def test_no_character_is_shown_before_it_is_whole(make_request: Make, text: str) -> None:
    shown = _shown(make_request(), _ids(text))
    assert all(text.startswith(part) for part in shown)
    assert shown[-1] == text


def test_a_multi_byte_character_is_held_back_until_its_last_byte(make_request: Make) -> None:
    ids = _ids("🚀")
    assert len(ids) == 4
    assert _shown(make_request(), ids) == ["", "", "", "", "🚀"]


def test_a_text_that_ends_inside_a_character_ends_in_a_replacement(make_request: Make) -> None:
    ids = _ids("a🚀")[:-1]
    assert _shown(make_request(max_tokens=len(ids)), ids)[-1] == "a\ufffd"


def _reference(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first stop string to end; the longest of those that end together."""
    ends = [(text.find(s) + len(s), -len(s)) for s in stops if s in text]
    if not ends:
        return text
    end, length = min(ends)
    return text[: end + length]


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple),
)
def test_a_text_ends_before_the_first_stop_string(
    make_request: Make, text: str, stops: tuple[str, ...]
) -> None:
    ids = _ids(text)
    request = make_request(stop_strings=stops, max_tokens=len(ids) or 1)
    shown = _shown(request, ids)
    expected = _reference(text, stops)
    assert shown[-1] == expected
    assert all(expected.startswith(part) for part in shown)


@given(
    st.text("ab京", max_size=30),
    st.lists(st.text("ab京", min_size=1, max_size=4), max_size=3).map(tuple),
    st.data(),
)
def test_text_is_the_same_however_ids_are_cut(
    make_request: Make, text: str, stops: tuple[str, ...], data: st.DataObject
) -> None:
    ids = _ids(text)
    request = make_request(stop_strings=stops)
    shown = _shown(request, ids)
    cut = data.draw(st.integers(0, len(ids)))
    whole = ChoiceText(request, VOCABULARY)
    assert whole.feed(ids[:cut]) == shown[cut]
    assert shown[cut] + whole.feed(ids[cut:]) == shown[-1]


@pytest.mark.parametrize("stop", ["Paris. Über", "東京", "🚀🇫🇷"])
def test_a_stop_string_cut_at_every_position_is_never_shown(make_request: Make, stop: str) -> None:
    reply = "The capital is Paris. Über 東京 🚀🇫🇷 and more"
    ids = _ids(reply)
    request = make_request(stop_strings=(stop,))
    before = reply[: reply.index(stop)]
    for cut in range(len(ids) + 1):
        text = ChoiceText(request, VOCABULARY)
        first = text.feed(ids[:cut])
        assert before.startswith(first)
        assert first + text.feed(ids[cut:]) == before
        assert text.finish is FinishReason.STOP
        assert text.stopped_by_text


def test_tokens_behind_a_stop_string_count_for_nothing(make_request: Make) -> None:
    ids = _ids("one stop two")
    text = ChoiceText(make_request(stop_strings=("stop",)), VOCABULARY)
    text.feed(ids)
    assert text.count == len(_ids("one stop"))


def test_a_beginning_of_a_stop_string_is_shown_once_the_text_ends(make_request: Make) -> None:
    ids = [*_ids("abc st"), EOS]
    shown = _shown(make_request(stop_strings=("stop",)), ids)
    assert shown[-2] == "abc "
    assert shown[-1] == "abc st"


def test_a_stop_string_within_min_tokens_does_not_stop(make_request: Make) -> None:
    ids = _ids("a.b.c")
    text = ChoiceText(make_request(stop_strings=(".",), min_tokens=2), VOCABULARY)
    assert text.feed(ids) == "a.b"


def test_the_end_of_sequence_shows_nothing_and_counts(make_request: Make) -> None:
    text = ChoiceText(make_request(), VOCABULARY)
    assert text.feed([*_ids("hi"), EOS, *_ids("more")]) == "hi"
    assert (text.finish, text.count) == (FinishReason.STOP, len(_ids("hi")) + 1)
    assert not text.stopped_by_text


def test_a_stop_string_with_the_last_token_is_a_stop_and_not_a_length(make_request: Make) -> None:
    ids = _ids("ab.")
    text = ChoiceText(make_request(stop_strings=(".",), max_tokens=len(ids)), VOCABULARY)
    assert text.feed(ids) == "ab"
    assert text.finish is FinishReason.STOP


@given(st.text("ab", min_size=1, max_size=6), st.text("ab", max_size=40))
def test_a_stop_string_finds_every_end_and_holds_what_it_must(stop: str, text: str) -> None:
    machine = StopString(stop)
    for index, character in enumerate(text):
        known = text[: index + 1]
        assert machine.step(character) == known.endswith(stop)
        held = max(k for k in range(len(stop)) if known.endswith(stop[:k]))
        assert machine.held == held


PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581": 256, "\u2581a": 257}


def _fallback(*behind: Any) -> Any:
    """What SentencePiece models decode with."""
    stages = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *behind]
    return decoders.Sequence(stages)


@pytest.mark.parametrize(
    "decoder",
    [
        _fallback(),
        _fallback(decoders.Strip(" ", 1, 0)),
        _fallback(decoders.Strip(" ", 2, 0)),
        decoders.Metaspace("\u2581", "always"),
        decoders.Metaspace("\u2581", "never"),
    ],
)
def test_the_first_space_is_shown_where_the_library_shows_it(
    make_request: Make, decoder: Any
) -> None:
    encoder = Encoder(models.BPE(PIECES, [], byte_fallback=True))
    encoder.decoder = decoder
    vocabulary = Tokenizer(encoder.to_str().encode()).vocabulary
    shown = ChoiceText(make_request(), vocabulary).feed([257, 257])
    assert shown == encoder.decode([257, 257])


@given(TEXTS)
def test_byte_fallback_vocabularies_decode_like_their_library(
    make_request: Make, text: str
) -> None:
    encoder = Encoder(models.BPE(PIECES, [], byte_fallback=True))
    encoder.decoder = _fallback(decoders.Strip(" ", 1, 0))
    vocabulary = Tokenizer(encoder.to_str().encode()).vocabulary
    ids = [256 if byte == 0x20 else byte for byte in text.encode()]
    shown = ChoiceText(make_request(max_tokens=len(ids) or 1), vocabulary).feed(ids)
    assert shown == encoder.decode(ids)


DECODERS = [
    _fallback(),
    _fallback(decoders.Strip(" ", 1, 0)),
    _fallback(decoders.Strip(" ", 2, 0)),
    decoders.Metaspace("\u2581", "always"),
    decoders.Metaspace("\u2581", "first"),
    decoders.Metaspace("\u2581", "never"),
    decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("\u2581", "always")]),
    decoders.ByteLevel(),
    decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
]
MORE = {"\u2581\u2581b": 258, "x\u2581y": 259, "\u0120z": 260, "c": 261}
WORDS = st.integers(256, 261) | st.sampled_from((0x41, 0x20, 262, 263))


@pytest.mark.parametrize("decoder", DECODERS)
@given(prompt=st.lists(WORDS, min_size=1, max_size=6), ids=st.lists(WORDS, max_size=8))
def test_a_completion_reads_on_as_the_library_decodes_both_together(
    make_request: Make, decoder: Any, prompt: list[int], ids: list[int]
) -> None:
    encoder = Encoder(models.BPE(PIECES | MORE, [], byte_fallback=True))
    encoder.decoder = decoder
    encoder.add_tokens([AddedToken("<s>", special=True), AddedToken("\u2581<t> ", special=False)])
    vocabulary = Tokenizer(encoder.to_str().encode()).vocabulary
    before = encoder.decode(prompt)
    answer = replace(make_request(max_tokens=len(ids) or 1), prompt_ids=tuple(prompt))
    continued = replace(answer, kind=GenerationKind.COMPLETION)
    assert before + ChoiceText(continued, vocabulary).feed(ids) == encoder.decode([*prompt, *ids])
    assert ChoiceText(answer, vocabulary).feed(ids) == encoder.decode(ids)


def test_bytes_that_are_no_utf8_are_replaced_one_by_one_under_byte_fallback(
    make_request: Make,
) -> None:
    encoder = Encoder(models.BPE(PIECES, [], byte_fallback=True))
    encoder.decoder = _fallback()
    vocabulary = Tokenizer(encoder.to_str().encode()).vocabulary
    for ids in ([0xE6, 0x9D, 257], [257, 0xFF, 0xFE], [257, 0xF0, 0x9F]):
        request = make_request(max_tokens=len(ids))
        assert ChoiceText(request, vocabulary).feed(ids) == encoder.decode(ids)


def test_a_special_token_that_a_stop_string_spells_ends_the_text_and_shows_nothing(
    make_request: Make,
) -> None:
    """It stands in the request as an id; the string stays, for a model that spells it out."""
    start = ENCODER.token_to_id("<|im_start|>")
    request = make_request(stop_strings=("<|im_start|>",), stop_token_ids=(start,))
    text = ChoiceText(request, VOCABULARY)
    assert text.feed([*_ids("yes"), start, *_ids("more")]) == "yes"
    assert (text.finish, text.count) == (FinishReason.STOP, len(_ids("yes")) + 1)
    assert not text.stopped_by_text
    spelt = ChoiceText(request, VOCABULARY)
    assert spelt.feed(_ids("yes") + _ids("<|im_") + _ids("start|>") + _ids("more")) == "yes"
    assert spelt.stopped_by_text
