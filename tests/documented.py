"""Requests made of the door's own document, and the judge of their answers.

What fits the document may still be refused (`min_tokens` over `max_tokens`); what does not fit must
be. Every answer is as the document says, and none is a 5xx.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import schemathesis
from schemathesis.specs.openapi import checks

from services.router.openapi.document import document
from services.router.openapi.operations import OPERATIONS
from tests.fake_mesh import FakeMesh
from tests.waiting import until

ANYTHING_FITS = ("retrieveModel",)
"""Operations of which nothing that can be sent does not fit."""
LIMIT_S = 60.0
_CHECKS = [
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


def operations() -> Iterator[tuple[str, Any]]:
    """Each by its id."""
    for found in DOCUMENT.get_all_operations():
        operation: Any = found.ok()
        yield operation.definition.raw["operationId"], operation


def judge(case: Any, url: str, session: requests.Session) -> None:
    """Asks the router; fails where the answer is not as the document says."""
    answer = case.call(base_url=url, session=session, timeout=LIMIT_S)
    assert answer.status_code < 500, answer.text
    case.validate_response(answer, checks=_CHECKS)


@contextmanager
def router(files: Path) -> Iterator[str]:
    """One in a thread of its own, by its URL: cases are sent as any client sends."""
    serving, done = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def serve() -> None:
        mesh = FakeMesh(1)
        mesh.replies, mesh.burst = ["Paris."], 64
        async with mesh.serving(), mesh.router(max_choices=2, files=str(files)) as doors:
            await until(lambda: doors.router.ready)
            found.extend((asyncio.get_running_loop(), f"http://127.0.0.1:{doors.http_port}"))
            serving.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert serving.wait(60)
    loop, address = found
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
