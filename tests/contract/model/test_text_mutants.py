"""Whatever a model's text files say, they are read as transformers reads them, or refused by file
and field.

No third outcome: what would be imported and then answered with other ids, another text or another
end.
"""

from __future__ import annotations

import collections
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from services.common.errors import InvalidArgument
from services.model.chat import Message
from services.model.text import ModelText
from services.model.text_check import check_text
from services.model.vocabulary import Pieces, Vocabulary
from tests.text_mutants import (
    GENERATION,
    SETTINGS,
    SPECIALS,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY_SIZE,
    bases,
    mutant,
)

MUTANTS = 320
LEAST_SERVED = 0.4
PLAIN = "the cat's  answer: 12.5 é 東京\n\n\tand </s> <|turn|>the house"
TURNS = [
    {"role": "user", "content": " what is it? "},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": "an end"},
]
PROMPT_IDS = 4
"""So many ids are the prompt that the rest of the text goes on from."""


@dataclass(frozen=True)
class Read:
    """What a model's text files come to."""

    plain: list[int]
    chat: list[int] | None
    answer: str
    """The plain text's ids as the answer of a chat."""
    continued: str
    """Those behind the prompt's, as they go on from it."""
    ends: frozenset[int]


def theirs(folder: Path) -> Read | None:
    """As transformers has it; None where it does not take the files."""
    try:
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        ends = [tokenizer.eos_token_id]
        if (folder / GENERATION).exists():
            named = GenerationConfig.from_pretrained(folder).eos_token_id
            ends += named if isinstance(named, list) else [named]
        plain = tokenizer(PLAIN)["input_ids"]
        chat = None
        if tokenizer.chat_template is not None:
            asked = {"add_generation_prompt": True, "return_dict": False}
            chat = tokenizer.apply_chat_template(TURNS, **asked)
        whole = tokenizer.decode(plain, skip_special_tokens=True)
        start = tokenizer.decode(plain[:PROMPT_IDS], skip_special_tokens=True)
    except BaseException as failure:  # whatever it raises, it does not take them
        if isinstance(failure, Exception) or type(failure).__name__ == "PanicException":
            return None
        raise
    kept = frozenset(i for i in ends if type(i) is int and 0 <= i < VOCABULARY_SIZE)
    return Read(plain, chat, whole, whole.removeprefix(start), kept)


def ours(files: dict[str, bytes]) -> Read:
    """As a router has it. Raises InvalidArgument where an import refuses the files."""
    check_text({}, VOCABULARY_SIZE, files)
    text = ModelText({}, VOCABULARY_SIZE, files)
    chat = None
    if text.template is not None:
        rendered = text.template.render([Message(**turn) for turn in TURNS], 0)
        chat = text.tokenizer.encode_rendered(rendered)
    plain = text.tokenizer.encode(PLAIN)
    vocabulary = text.tokenizer.vocabulary
    answer = _shown(Pieces(vocabulary), plain, vocabulary)
    behind = Pieces(vocabulary, plain[:PROMPT_IDS])
    continued = _shown(behind, plain[PROMPT_IDS:], vocabulary)
    return Read(plain, chat, answer, continued, frozenset(text.eos_token_ids))


def _shown(pieces: Pieces, ids: list[int], vocabulary: Vocabulary) -> str:
    return b"".join(map(pieces.take, ids)).decode(errors=vocabulary.errors)


def _told(error: InvalidArgument) -> bool:
    """It names a field, and a file by name."""
    files = (TOKENIZER, SETTINGS, SPECIALS, GENERATION, TEMPLATE, "config.json")
    return bool(error.field) and any(name in error.message for name in files)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_the_bases_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    for kind, files in bases().items():
        assert ours(files) == theirs(_written(tmp_path / kind, files)), kind


def test_a_mutant_is_read_as_transformers_reads_it_or_refused_by_file_and_field(
    tmp_path: Path,
) -> None:
    refusals: collections.Counter[str] = collections.Counter()
    served, loaded, wrong = 0, 0, []
    for seed in range(MUTANTS):
        kind, said, files = mutant(seed)
        expected = theirs(_written(tmp_path / str(seed), files))
        loaded += expected is not None
        try:
            found = ours(files)
        except InvalidArgument as error:
            refusals[f"{error.field}{'' if expected else ', as by transformers'}"] += 1
            if not _told(error):
                wrong.append((seed, kind, said, f"refused without a name: {error.message}"))
            continue
        served += 1
        if found != expected:
            wrong.append((seed, kind, said, f"{found} != {expected}"))
    print(f"\n{MUTANTS} mutants: {loaded} load in transformers, {served} are served")
    print(*(f"{count:4} {field}" for field, count in refusals.most_common()), sep="\n")
    assert wrong == []
    assert served >= LEAST_SERVED * loaded


def _written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
