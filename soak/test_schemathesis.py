"""Requests drawn at random of the door's own document, that fit it and do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.documented import ANYTHING_FITS, judge, operations, router

ROUNDS = {"createChatCompletion": 640, "createCompletion": 640, "createResponse": 640}
"""Cases of an operation, of those that fit and of those that do not."""
OTHERS = 160
WITHOUT_PARAMETERS = 4


def _cases() -> Iterator[Any]:
    for name, operation in operations():
        takes = bool(operation.body) or any(
            True
            for part in (operation.path_parameters, operation.headers, operation.query)
            for _ in part
        )
        rounds = ROUNDS.get(name, OTHERS) if takes else WITHOUT_PARAMETERS
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or (takes and name not in ANYTHING_FITS):
                yield pytest.param(operation, mode, rounds, id=f"{name} {mode.value}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with router(tmp_path_factory.mktemp("files")) as url:
        yield url


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("operation", "mode", "rounds"), list(_cases()))
def test_a_case_drawn_of_the_document_is_answered_as_it_says(
    url: str, operation: Any, mode: GenerationMode, rounds: int
) -> None:
    with requests.Session() as session:

        @settings(
            max_examples=rounds,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def check(case: Any) -> None:
            judge(case, url, session)

        check()
