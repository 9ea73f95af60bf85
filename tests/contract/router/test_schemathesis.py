"""What the door's document says of every field, tried at its bounds, beyond them and without it.

The cases are schemathesis' coverage: each field at each of its limits and behind it, of each kind
and of others, absent, and beside what nobody knows; other methods, media types and parameters. They
follow from the document alone, so each run has the same ones. Cases in which more than one field is
odd are drawn at random by `soak/test_schemathesis.py`: to draw one costs more than to ask it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import requests
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig

from tests.documented import ANYTHING_FITS, DOCUMENT, judge, operations, router

OPERATIONS = dict(operations())


@cache
def _cases(name: str) -> list[Any]:
    modes = [
        mode
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or name not in ANYTHING_FITS
    ]
    config = GenerationConfig()
    found = DOCUMENT.iter_coverage_cases(
        OPERATIONS[name], generation_modes=modes, generation_config=config
    )
    return list(found)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with router(tmp_path_factory.mktemp("files")) as url:
        yield url


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_cases_of_an_operation_are_answered_as_the_document_says(
    url: str, name: str, mode: GenerationMode
) -> None:
    with requests.Session() as session:
        for case in _cases(name):
            if case.meta.generation.mode is mode:
                judge(case, url, session)


def test_there_are_three_thousand_cases() -> None:
    assert sum(len(_cases(name)) for name in OPERATIONS) >= 3000
