"""The tables of families in docs/models.md say what the registry says, and what tests compare."""

from __future__ import annotations

import re
from pathlib import Path

from services.model.families import FAMILIES
from services.model.vllm_models import (
    ARCHITECTURES,
    BY_TRANSFORMERS,
    LATENT,
    STATEFUL,
    UNDIVIDED,
)
from services.model.vllm_quantisation import METHODS
from tests.foreign_models import FOREIGN_ON_VLLM
from tests.model_families import MODELS, VLLM_MODELS

TEXT = (Path(__file__).parents[3] / "docs/models.md").read_text()
NAME = re.compile(r"`([^`]+)`")


def _rows(head: str) -> list[list[str]]:
    lines = TEXT[TEXT.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _types(column: int, word: str) -> list[str]:
    """Model types of the rows in which a column begins with a word, or has it."""
    found = [row for row in _rows("model") if word in re.split(r"[:, ]+", row[column])]
    return sorted(name for row in found for name in NAME.findall(row[1]))


def test_every_family_is_in_one_row() -> None:
    named = [name for row in _rows("model") for name in NAME.findall(row[1])]
    assert sorted(named) == sorted({*FAMILIES, *ARCHITECTURES.values()})


def test_a_row_names_the_backends_that_serve_it() -> None:
    assert _types(2, "yes") == sorted(FAMILIES)
    assert _types(3, "yes") == sorted({*ARCHITECTURES.values()})


def test_a_row_is_compared_where_a_test_does_so() -> None:
    native = {MODELS[name]["model_type"] for name in MODELS}
    on_vllm = {MODELS[name]["model_type"] for name in VLLM_MODELS} | {*FOREIGN_ON_VLLM}
    assert _types(4, "native") == sorted(native)
    assert _types(4, "vllm") == sorted(on_vllm)


def test_what_vllm_does_not_serve_is_listed_with_its_class() -> None:
    listed = [set(NAME.findall(row[1])) for row in _rows("refused")[:4]]
    assert listed == [LATENT, STATEFUL, UNDIVIDED, BY_TRANSFORMERS]


def test_every_way_to_quantise_is_listed() -> None:
    named = {NAME.findall(row[0])[0] for row in _rows("`quant_method`") if "`" in row[0]}
    assert named == set(METHODS)
