"""Models that no pipeline can run, or whose files no router can use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import httpx
import openai
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.router.__main__ import RunningDoors, running
from services.router.settings import RouterSettings
from tests.fake_mesh import FakeMesh
from tests.waiting import until

NO_TOKENIZER = "tiny: tokenizer.json is missing"
NO_END = (
    "tiny: no file names an end of sequence: eos_token_id in generation_config.json or "
    "config.json, or eos_token in tokenizer_config.json"
)


@asynccontextmanager
async def _serving(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    """A router that may never hear of a pipeline."""
    settings = RouterSettings(
        http_port=0,
        grpc_port=0,
        shutdown_grace_s=0.2,
        route_wait_s=600,
        controller_address=mesh.controller_address,
        tensorstore_address=mesh.store_address,
    )
    async with running(settings) as router:
        yield router


def _no_tokenizer(mesh: FakeMesh) -> None:
    del mesh.files["tokenizer.json"]


def _no_end(mesh: FakeMesh) -> None:
    mesh.files["generation_config.json"] = b"{}"
    mesh.files["tokenizer_config.json"] = b"{}"


def _no_json(mesh: FakeMesh) -> None:
    mesh.files["generation_config.json"] = b"{"


def _no_pipeline(mesh: FakeMesh) -> None:
    mesh.unusable, mesh.alive = "hidden_act must be silu", [False]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_no_tokenizer, NO_TOKENIZER),
        (_no_end, NO_END),
        (
            _no_json,
            "tiny: generation_config.json: is not JSON (in UTF-8, without a byte order mark)",
        ),
        (_no_pipeline, "no pipeline can run the model: hidden_act must be silu"),
    ],
)
async def test_it_is_not_ready_says_why_and_is_asked_once(
    damage: Callable[[FakeMesh], None], reason: str
) -> None:
    mesh, asked = FakeMesh(1), []
    damage(mesh)

    async def note(request: httpx.Request) -> None:
        asked.append(request.url.path)

    async with mesh.serving(), _serving(mesh) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        await until(lambda: router.router.why_not_ready and router.router.why_not_ready.permanent)
        async with httpx.AsyncClient(event_hooks={"request": [note]}, timeout=60) as http:
            found = await http.get(f"{url}/readyz")
            assert found.status_code == 503
            assert found.json() == {"ready": False, "reason": reason, "permanent": True}
            client = openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="any", http_client=http, max_retries=3
            )
            asked.clear()
            with pytest.raises(openai.InternalServerError) as refusal:
                await client.completions.create(model="tiny", prompt="hi")
        assert asked == ["/v1/completions"]
        answer = refusal.value.response
        assert answer.status_code == 500
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert answer.json()["error"]["code"] == "model_unusable"
        assert answer.json()["error"]["message"] == reason
        async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as status:
                async for _ in stub.Generate(
                    router_pb2.GenerateRequest(model="tiny", text="hi"), timeout=20
                ):
                    pass
        assert status.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert status.value.details() == reason
    assert mesh.calls == []


async def test_it_is_ready_once_a_pipeline_comes_after_all() -> None:
    mesh = FakeMesh(1)
    _no_pipeline(mesh)
    async with mesh.serving(), _serving(mesh) as router:
        await until(lambda: router.router.why_not_ready and router.router.why_not_ready.permanent)
        mesh.unusable, mesh.alive = "", [True]
        mesh.change_routes()
        await until(lambda: router.router.ready)


async def test_it_is_not_ready_before_it_has_read_the_model(mesh: FakeMesh) -> None:
    mesh.store_fault = "away"
    async with mesh.router() as router:
        await until(lambda: router.router.served())
        reason = router.router.why_not_ready
        assert reason is not None
        assert (reason.message, reason.permanent) == (
            "tiny: its files have not been read yet",
            False,
        )
        mesh.store_fault = ""
        await until(lambda: router.router.ready)


async def test_what_is_refused_for_good_is_not_to_be_asked_again(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 5}
    answer = await http.post("/v1/completions", json=body)
    path = f"/v1/generations/{answer.headers['x-generation-id']}/stream"
    refused = await http.get(path, headers={"last-event-id": "3-00000000"})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
    assert "x-should-retry" not in answer.headers
