"""Text and ids against transformers, over the tokenizers and templates of many families."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from services.common.errors import InvalidArgument
from services.model.chat import Message
from services.model.text import ModelText
from services.model.text_check import check_text
from tests.families import FAMILIES

pytestmark = pytest.mark.timeout(300)
WORDS = (
    "Hello",
    " world",
    "12345",
    "é",
    "e\u0301",
    "ﬁ",
    "東京",
    "🚀",
    "<",
    "|>",
    "<|im_",
    "[INST]",
)
SPACES = (" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\r\n", " \n ")
THOUGHTS = ("<think>", "</think>", "<think>\nso\n</think>\n\nyes", "/no_think")
PLAIN = st.lists(st.sampled_from((*WORDS, *SPACES, *THOUGHTS)), max_size=9).map("".join)
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Loaded:
    """One family, read by transformers and by us."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self.theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.ours = ModelText({"vocab_size": len(self.theirs)}, self.files)
        backend = self.theirs.backend_tokenizer
        self.plain = (_plain_encoder(backend, later=False), _plain_encoder(backend, later=True))
        """The library's encoder that sees no special token: for a text's start, and behind it."""

    def __repr__(self) -> str:
        return self._name


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = tmp_path_factory.mktemp("family")
    FAMILIES[request.param].write(directory)
    return Loaded(request.param, directory)


def _turns(contents: list[str], system: str | None) -> list[dict[str, str]]:
    spoken = [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]
    return spoken if system is None else [{"role": "system", "content": system}, *spoken]


CONVERSATIONS = st.builds(
    _turns,
    st.sampled_from((1, 3, 9)).flatmap(lambda n: st.lists(PLAIN, min_size=n, max_size=n)),
    st.none() | PLAIN,
)


def _rendered(family: Loaded, turns: list[dict[str, str]]) -> str:
    """By us; equal to transformers' in text and in ids, or both refuse."""
    template = family.ours.template
    assert template is not None
    family.theirs.chat_template = _undated(family.theirs.chat_template)
    messages = [Message(**turn) for turn in turns]
    try:
        theirs: str = family.theirs.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError:
        with pytest.raises(InvalidArgument):
            template.render(messages, 0)
        return ""
    ours = template.render(messages, 0)
    assert ours == theirs
    return ours


def _undated(template: str) -> str:
    """Both have the day that the request was made on."""
    return re.sub(r"strftime_now\('[^']*'\)", lambda form: _THAT_DAY[form[0]], template)


_THAT_DAY = {
    "strftime_now('%d %b %Y')": "'01 Jan 1970'",
    "strftime_now('%d %B %Y')": "'01 January 1970'",
    "strftime_now('%B %d, %Y')": "'January 01, 1970'",
}


@QUICK
@given(turns=CONVERSATIONS)
def test_text_and_ids_are_those_of_transformers(
    family: Loaded, turns: list[dict[str, str]]
) -> None:
    ours = _rendered(family, turns)
    if ours:
        theirs = family.theirs(ours, add_special_tokens=False)["input_ids"]
        if _spells_special(family, turns):
            return
        assert family.ours.tokenizer.encode_rendered(ours) == theirs
        assert family.ours.tokenizer.encode_guarded(ours) == theirs


def _spells_special(family: Loaded, turns: list[dict[str, str]]) -> bool:
    special = family.ours.tokenizer.special_ids
    return any(text in turn["content"] for turn in turns for text in special)


@QUICK
@given(data=st.data())
def test_what_a_message_spells_is_text(family: Loaded, data: st.DataObject) -> None:
    """The text is transformers', and so are the ids, but that a spelt token is plain text."""
    tokenizer = family.ours.tokenizer
    spelt = sorted(set(tokenizer.special_ids) - {"<unk>"} - set(THOUGHTS), key=len)[:12]
    pieces = st.lists(st.sampled_from((*WORDS, *SPACES[:3], *spelt * 2)), max_size=9)
    contents = data.draw(st.lists(pieces.map("".join), min_size=3, max_size=3))
    turns = _turns(contents, None)
    ours = _rendered(family, turns)
    if any(token.normalized for token in _specials(family)):
        return  # the library does not cut a text where they stand
    hidden = [{**t, "content": _hide(t["content"], spelt)} for t in turns]
    safe = family.theirs.apply_chat_template(hidden, tokenize=False, add_generation_prompt=True)
    assert _shown(safe, spelt) == ours
    assert tokenizer.encode_rendered(ours) == _piecewise(family, safe, spelt)


def _hide(text: str, spelt: list[str]) -> str:
    """Each special token's text under two characters that no template knows."""
    pattern = "|".join(map(re.escape, sorted(spelt, key=len, reverse=True)))
    return re.sub(pattern, lambda found: f"\ue000{chr(0xE100 + spelt.index(found[0]))}", text)


def _shown(text: str, spelt: list[str]) -> str:
    return re.sub("\ue000(.)", lambda found: spelt[ord(found[1]) - 0xE100], text)


def _specials(family: Loaded) -> list[AddedToken]:
    return [token for token in family.theirs.added_tokens_decoder.values() if token.special]


def _piecewise(family: Loaded, safe: str, spelt: list[str]) -> list[int]:
    """The library's ids of the texts between the template's special tokens, each with the library
    told to see no special token."""
    tokens = {
        token.content: (token_id, token)
        for token_id, token in family.theirs.added_tokens_decoder.items()
        if token.special
    }
    first, later = family.plain
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    ids: list[int] = []
    pieces = re.split(f"({pattern})", safe)
    for index, piece in enumerate(pieces):
        if index % 2:
            ids.append(tokens[piece][0])
            continue
        if index and tokens[pieces[index - 1]][1].rstrip:
            piece = piece.lstrip()
        if index + 1 < len(pieces) and tokens[pieces[index + 1]][1].lstrip:
            piece = piece.rstrip()
        encoder = later if index else first
        if piece:
            ids += encoder.encode(_shown(piece, spelt), add_special_tokens=False).ids
    return ids


def _plain_encoder(backend: Any, *, later: bool) -> Encoder:
    encoder = Encoder(backend.model)
    if backend.normalizer is not None:
        encoder.normalizer = backend.normalizer
    scheme = getattr(backend.pre_tokenizer, "prepend_scheme", None)
    if later and scheme == "first":
        encoder.pre_tokenizer = Metaspace("\u2581", "never", split=False)
    elif backend.pre_tokenizer is not None:
        encoder.pre_tokenizer = backend.pre_tokenizer
    tokens = backend.get_added_tokens_decoder()
    encoder.add_tokens([tokens[token_id] for token_id in sorted(tokens)])
    encoder.encode_special_tokens = True
    return encoder


@QUICK
@given(text=PLAIN, special=st.integers(0, 5))
def test_a_prompt_without_a_template_is_encoded_as_by_transformers(
    family: Loaded, text: str, special: int
) -> None:
    spelt = sorted(family.ours.tokenizer.special_ids)[special % 3]
    for prompt in (text, f"{text}{spelt} {text}"):
        assert family.ours.tokenizer.encode(prompt) == family.theirs(prompt)["input_ids"]


def test_the_special_tokens_a_template_finds_are_those_of_transformers(family: Loaded) -> None:
    template = family.ours.template
    assert template is not None
    names = {name: str(text) for name, text in template.variables.items()}
    assert names == family.theirs.special_tokens_map


def test_a_family_can_be_imported(family: Loaded) -> None:
    check_text({"vocab_size": len(family.theirs)}, family.files)
