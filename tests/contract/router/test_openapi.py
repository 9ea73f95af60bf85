"""The document that a router serves about itself, against what it does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette

from services.router.core.body_budget import BodyBudget
from services.router.doorkeeper import Doorkeeper
from services.router.http.gateway import Gateway, routes_of
from services.router.openapi.operations import OPERATIONS
from services.router.settings import RouterSettings
from tests.fake_mesh import FakeMesh

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 3}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with FakeMesh(1).serving() as mesh, mesh.router() as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def described(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.get("/openapi.json")
    document: dict[str, Any] = answer.json()
    OpenAPIV31SpecValidator(document).validate()  # type: ignore[arg-type]
    return document


async def test_every_route_is_described_and_no_other() -> None:
    """Whoever adds a route describes it in services/router/openapi/operations.py."""
    offline: Any = SimpleNamespace(files=None, batches=None)
    router: Any = None
    gateway = Gateway(router, router, RouterSettings(), BodyBudget(1), Doorkeeper(None), offline)
    described = {(method, path.replace("{model}", "{model:path}")) for method, path in OPERATIONS}
    assert set(routes_of(Starlette(routes=gateway.routes()))) == described


def _check(document: dict[str, Any], path: str, method: str, answer: httpx.Response) -> None:
    said = document["paths"][path][method]["responses"][str(answer.status_code)]
    for name, header in said["headers"].items():
        assert name in answer.headers, (name, header)
    schema = said["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", CHAT, 200),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}, 200),
        ("/v1/completions", TEXT, 200),
        ("/v1/completions", {**TEXT, "logprobs": 2}, 200),
        ("/v1/completions", {**TEXT, "temperature": 3}, 400),
        ("/v1/chat/completions", {**CHAT, "model": "else"}, 404),
    ],
)
async def test_answers_are_as_described(
    http: httpx.AsyncClient,
    described: dict[str, Any],
    path: str,
    body: dict[str, Any],
    status: int,
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == status
    _check(described, path, "post", answer)


async def test_what_is_asked_of_a_generation_is_as_described(
    http: httpx.AsyncClient, described: dict[str, Any]
) -> None:
    began = await http.post("/v1/completions", json=TEXT)
    where = f"/v1/generations/{began.headers['x-generation-id']}"
    _check(described, "/v1/generations/{id}", "get", await http.get(where))
    cancelled = await http.post(f"{where}/cancel")
    _check(described, "/v1/generations/{id}/cancel", "post", cancelled)
    _check(described, "/v1/generations/{id}", "delete", await http.delete(where))
    _check(described, "/v1/models", "get", await http.get("/v1/models"))
    _check(described, "/v1/models/{model}", "get", await http.get("/v1/models/tiny"))


async def test_a_route_that_is_not_there_is_told_what_is(http: httpx.AsyncClient) -> None:
    error = (await http.post("/v1/chat/completion", json=CHAT)).json()["error"]
    assert error["code"] == "not_found"
    assert "no route /v1/chat/completion;" in error["message"]
    assert "POST /v1/chat/completions" in error["message"]
    assert "/openapi.json" in error["message"]
