"""A model that is imported again under its name while a mesh serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.common.generation import ModelRef
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.tiny_model import MODEL
from tests.waiting import until

NEWER = ModelRef(MODEL.model_id, "cd" * 32)
BODY = {"model": MODEL.model_id, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    mesh.templates = {MODEL.digest: "older{{ messages[0].content }}", NEWER.digest: "newer: hi"}
    async with mesh.router(recover_s=5.0, route_wait_s=20.0) as router:
        yield router


def _serve(mesh: FakeMesh, model: ModelRef, *, heads: bool = True) -> None:
    mesh.model = model
    mesh.alive = [heads] * len(mesh.alive)
    mesh.change_routes()


def _said(mesh: FakeMesh, message: Any) -> str:
    return mesh.tokenizer.decode(list(message.request.prompt_ids), skip_special_tokens=False)


async def test_a_request_goes_by_the_version_that_pipelines_run(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
    _serve(mesh, NEWER)
    await until(lambda: router.router.served()[0] == NEWER)
    assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
    first, second = (message for _, message in mesh.calls)
    assert (first.request.model.digest, _said(mesh, first)) == (MODEL.digest, "olderhello")
    assert (second.request.model.digest, _said(mesh, second)) == (NEWER.digest, "newer: hi")
    assert "" not in mesh.described


async def test_a_request_that_waits_while_the_version_changes_is_made_for_the_new_one(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
    _serve(mesh, MODEL, heads=False)
    await until(lambda: not router.router.served())
    waiting = asyncio.create_task(http.post("/v1/chat/completions", json=BODY))
    await until(lambda: router.router._admission.total)
    _serve(mesh, NEWER)
    answer = await waiting
    assert answer.status_code == 200, answer.text
    message = mesh.calls[-1][1]
    assert (message.request.model.digest, _said(mesh, message)) == (NEWER.digest, "newer: hi")
    assert answer.json()["usage"]["prompt_tokens"] == len(message.request.prompt_ids)


async def test_what_began_under_the_old_version_is_read_with_its_files(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    whole = await http.post("/v1/chat/completions", json=BODY)
    name = whole.headers["x-generation-id"]
    _serve(mesh, NEWER)
    async with mesh.router(recover_s=5.0, route_wait_s=20.0) as other:
        url = f"http://127.0.0.1:{other.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            mesh.described.clear()
            again = await client.get(f"/v1/generations/{name}/stream")
    assert again.status_code == 200, again.text
    assert MODEL.digest in mesh.described
