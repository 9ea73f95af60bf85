"""Whatever a model's text files say, they are read as transformers reads them, or refused by file
and field before anything is stored.

No third outcome: what would be imported and then answered with other ids, another text or another
end.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import time
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from services.common.errors import InvalidArgument, NotFound
from services.model.chat import Message
from services.model.text import FILES, ModelText
from services.model.vocabulary import Pieces, Vocabulary
from services.tensorstore.sources.checkpoint import check
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_tensors
from tests.text_mutants import (
    ADDED,
    CONFIG,
    GENERATION,
    OTHER_TEMPLATES,
    SETTINGS,
    SPECIALS,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY_SIZE,
    bases,
    mutant,
)

MUTANTS = 700
LEAST_SERVED = 0.4
WEIGHTS = "model.safetensors"
PLAINS = (
    "the cat's  answer: 12.5 é e\u0301 東京\n\n\tand </s> <|turn|>the house<|im_end|> <new>",
    " Is   a <image> THE <a>ﬁne 🚀\r\n<unk> ? <|im_start|> the<think>\n<pad>",
)
ASKED = [{"role": "user", "content": " what is it? "}]
CHATS: tuple[list[dict[str, str]], ...] = (
    ASKED,
    [
        {"role": "system", "content": "Say it in 3 words."},
        {"role": "user", "content": "e\u0301 東京\n\n  the"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "an end"},
    ],
)
SPELT = " a </s> b <|im_end|>\n<|turn|>user <s>"
"""What a message says in place of a question; transformers' ids have special tokens there."""
PROMPT_IDS = 4
"""So many ids are the prompt that the rest of the text goes on from."""


@dataclass(frozen=True)
class Read:
    """What a model's text files come to."""

    plain: list[list[int]]
    specials: dict[str, int]
    chats: list[list[int] | None]
    spelt: str | None
    """The text of a chat whose message spells special tokens."""
    answers: list[str]
    """The plain texts' ids as the answer of a chat."""
    continued: str
    """Those behind the prompt's, as they go on from it; empty where that ends within a letter."""
    ends: frozenset[int]


def theirs(folder: Path) -> Read | None:
    """As transformers has it; None where it does not take the files."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ends, config = [tokenizer.eos_token_id], AutoConfig.from_pretrained(folder)
        generates = (folder / GENERATION).exists()
        if not generates or "eos_token_id" in json.loads((folder / CONFIG).read_bytes()):
            ends += _listed(config.eos_token_id)  # else it is a default that nothing asks for
        if generates:
            ends += _listed(GenerationConfig.from_pretrained(folder).eos_token_id)
        plain = [tokenizer(text)["input_ids"] for text in PLAINS]
        whole = [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
        start = tokenizer.decode(plain[0][:PROMPT_IDS], skip_special_tokens=True)
        specials = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    except BaseException as failure:  # whatever it raises, it does not take them
        _check_taken_for_none(failure)
        return None
    kept = frozenset(i for i in ends if type(i) is int and 0 <= i < VOCABULARY_SIZE)
    return Read(
        plain,
        {text: i for text, i in specials.items() if text and i < VOCABULARY_SIZE},
        [
            None if _spells(chat, specials) else _chat(tokenizer, chat, tokenize=True)
            for chat in CHATS
        ],
        _chat(tokenizer, _spelling(), tokenize=False),
        whole,
        "" if "\ufffd" in start else whole[0].removeprefix(start),
        kept,
    )


def _listed(ends: Any) -> list[Any]:
    return ends if isinstance(ends, list) else [ends]


def _chat(tokenizer: Any, chat: list[dict[str, str]], *, tokenize: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=tokenize, return_dict=False
        )
    except BaseException as failure:
        _check_taken_for_none(failure)
        return None


def _check_taken_for_none(failure: BaseException) -> None:
    """An interrupt is no answer; a panic of the library is one."""
    if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
        raise failure


def _spells(chat: list[dict[str, str]], specials: Collection[str]) -> bool:
    """A message holds a special token's text, which is a token for transformers, and text here."""
    return any(text in turn["content"] for turn in chat for text in specials if text)


def _spelling() -> list[dict[str, str]]:
    return [*CHATS[1][:-1], {"role": "user", "content": SPELT}]


def ours(folder: Path) -> Read:
    """As an import checks it and a router then has it. Raises what the import is refused with."""
    with contextlib.closing(open_source(folder)) as checkpoint:
        size = check(checkpoint).outline.vocab_size
        files = {name: data for name, data in checkpoint.files.items() if name in FILES}
        text = ModelText(checkpoint.config, size, files)
    chats = [
        None if _spells(chat, text.special_token_ids) else _rendered(text, chat) for chat in CHATS
    ]
    plain = [text.tokenizer.encode(prompt) for prompt in PLAINS]
    vocabulary = text.tokenizer.vocabulary
    behind = Pieces(vocabulary, plain[0][:PROMPT_IDS])
    start = _shown(Pieces(vocabulary), plain[0][:PROMPT_IDS], vocabulary)
    spelt = _rendered(text, _spelling())
    return Read(
        plain,
        text.special_token_ids,
        [None if chat is None else text.tokenizer.encode_rendered(chat) for chat in chats],
        None if spelt is None else str.__str__(spelt),
        [_shown(Pieces(vocabulary), ids, vocabulary) for ids in plain],
        "" if "\ufffd" in start else _shown(behind, plain[0][PROMPT_IDS:], vocabulary),
        frozenset(text.eos_token_ids),
    )


def _rendered(text: ModelText, chat: list[dict[str, str]]) -> str | None:
    if text.template is None:
        return None
    try:
        return text.template.render([Message(**turn) for turn in chat], 0)
    except InvalidArgument:
        return None


def _shown(pieces: Pieces, ids: list[int], vocabulary: Vocabulary) -> str:
    return b"".join(map(pieces.take, ids)).decode(errors=vocabulary.errors)


def _told(error: InvalidArgument | NotFound) -> bool:
    """It names a field, and a file by name."""
    texts = (TOKENIZER, SETTINGS, SPECIALS, GENERATION, TEMPLATE, ADDED, OTHER_TEMPLATES)
    return bool(error.field) and any(name in error.message for name in (*texts, CONFIG))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each kind."""
    found = {}
    for kind, files in bases().items():
        found[kind] = tmp_path_factory.mktemp("weights") / WEIGHTS
        save_file(make_tensors(json.loads(files[CONFIG])), found[kind])
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_the_bases_are_read_as_transformers_reads_them(
    tmp_path: Path, weights: dict[str, Path]
) -> None:
    for kind, files in bases().items():
        folder = _written(tmp_path / kind, files, weights[kind])
        assert ours(folder) == theirs(folder), kind


@pytest.mark.timeout(300)
def test_a_mutant_is_read_as_transformers_reads_it_or_refused_by_file_and_field(
    tmp_path: Path, weights: dict[str, Path]
) -> None:
    found = tried(range(MUTANTS), tmp_path, weights)
    print(found)
    assert found.wrong == []
    assert found.served >= LEAST_SERVED * found.loaded


class Tried:
    """What became of mutants."""

    def __init__(self) -> None:
        self.loaded = self.served = 0
        self.refusals: collections.Counter[str] = collections.Counter()
        self.slowest: tuple[float, str] = (0.0, "")
        self.wrong: list[tuple[int, str, str, str]] = []

    def __str__(self) -> str:
        seconds, said = self.slowest
        counts = (f"{count:5} {field}" for field, count in self.refusals.most_common())
        return "\n".join(
            (
                f"{self.loaded} mutants load in transformers, {self.served} are served",
                f"the slowest refusal took {seconds * 1000:.0f} ms: {said}",
                *counts,
            )
        )


def tried(seeds: range, folder: Path, weights: dict[str, Path]) -> Tried:
    """Each seed's mutant, read by transformers and by us."""
    found = Tried()
    for seed in seeds:
        kind, said, files = mutant(seed)
        here = _written(folder / str(seed), files, weights[kind])
        expected = theirs(here)
        found.loaded += expected is not None
        started = time.perf_counter()
        try:
            read = ours(here)
        except (InvalidArgument, NotFound) as error:
            took = time.perf_counter() - started
            found.slowest = max(found.slowest, (took, f"{kind}: {said}"))
            found.refusals[f"{error.field}{'' if expected else ', as by transformers'}"] += 1
            if not _told(error):
                found.wrong.append((seed, kind, said, f"refused without a name: {error.message}"))
            continue
        found.served += 1
        if read != expected:
            found.wrong.append((seed, kind, said, _difference(read, expected)))
    return found


def _difference(read: Read, expected: Read | None) -> str:
    if expected is None:
        return "served, and transformers does not load it"
    return "; ".join(
        f"{field.name}: {one} != {other}"
        for field in fields(read)
        if (one := getattr(read, field.name)) != (other := getattr(expected, field.name))
    )


def _written(folder: Path, files: dict[str, bytes], weights: Path) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / WEIGHTS).hardlink_to(weights)
    return folder
