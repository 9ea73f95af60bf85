"""Requests made of the door's own document, fitting it and not: never a 5xx, never a hang.

What fits may still be refused (`min_tokens` over `max_tokens`); what does not fit must be. Every
answer is as the document says.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from services.router.openapi.document import document
from services.router.openapi.operations import OPERATIONS
from tests.fake_mesh import FakeMesh
from tests.waiting import until

ROUNDS = {"createChatCompletion": 160, "createCompletion": 160}
"""Cases of an operation, of those that fit and of those that do not; the bodies of these two take
most time to make."""
OTHERS = 80
WITHOUT_PARAMETERS = 4
ANYTHING_FITS = ("retrieveModel",)
LIMIT_S = 60.0
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def _narrowed() -> dict[str, Any]:
    """The document, as far as the stand-in's model goes: else nearly all would end at a model that
    is not there, or a token that it has not."""
    whole = document(OPERATIONS, asks_for_keys=False)
    for name, body in whole["components"]["schemas"].items():
        fields = body.get("properties", {})
        if name.endswith("Body") and "model" in fields:
            fields["model"] = {"enum": ["tiny", None]}
    return whole


DOCUMENT = schemathesis.openapi.from_dict(_narrowed())


def _cases() -> Iterator[Any]:
    for found in DOCUMENT.get_all_operations():
        operation: Any = found.ok()
        name = operation.definition.raw["operationId"]
        takes = bool(operation.body) or any(
            True
            for part in (operation.path_parameters, operation.headers, operation.query)
            for _ in part
        )
        rounds = ROUNDS.get(name, OTHERS) if takes else WITHOUT_PARAMETERS
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or (takes and name not in ANYTHING_FITS):
                yield pytest.param(operation, mode, rounds, id=f"{operation.label} {mode.value}")


CASES = list(_cases())


def test_there_are_three_thousand_cases() -> None:
    assert sum(case.values[2] for case in CASES) >= 3000  # type: ignore[misc]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A router in a thread of its own: the cases are sent as any client sends."""
    serving, done = threading.Event(), asyncio.Event()
    found: list[Any] = []
    files = str(tmp_path_factory.mktemp("files"))

    async def serve() -> None:
        mesh = FakeMesh(1)
        mesh.replies, mesh.burst = ["Paris."], 64
        async with mesh.serving(), mesh.router(max_choices=2, files=files) as router:
            await until(lambda: router.router.ready)
            found.extend((asyncio.get_running_loop(), f"http://127.0.0.1:{router.http_port}"))
            serving.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert serving.wait(60)
    loop, address = found
    yield address
    loop.call_soon_threadsafe(done.set)
    thread.join(60)


@pytest.mark.parametrize(("operation", "mode", "rounds"), CASES)
def test_a_case_of_the_document_is_answered_as_it_says(
    url: str, operation: Any, mode: GenerationMode, rounds: int
) -> None:
    session = requests.Session()

    @seed(1)
    @settings(
        max_examples=rounds,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def check(case: Any) -> None:
        answer = case.call(base_url=url, session=session, timeout=LIMIT_S)
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=CHECKS)

    check()
