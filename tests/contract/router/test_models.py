"""A second model that is deployed and has no pipeline, beside one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, wire
from services.common.generation import ModelRef
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.waiting import until

OTHER = ModelRef("other", "cd" * 32)
STREAMS = 8


def _body(model: str) -> dict[str, object]:
    return {"model": model, "prompt": "hi", "max_tokens": 4}


def _deploy(mesh: FakeMesh, *, unusable: str = "", asleep: bool = False) -> None:
    model = wire.model_to(OTHER)
    mesh.others = [controller_pb2.DeployedModel(model=model, unusable=unusable, asleep=asleep)]
    mesh.change_routes()


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    async with mesh.router(route_wait_s=30.0, max_streams=STREAMS) as router:
        await until(lambda: router.router.ready)
        yield router


@pytest.fixture
async def http(router: RunningDoors) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{router.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def _deployed(mesh: FakeMesh, router: RunningDoors, *, unusable: str = "") -> None:
    _deploy(mesh, unusable=unusable)
    await until(lambda: OTHER in router.router.catalogue.deployed())


async def test_what_is_not_deployed_is_not_found_at_either_door(
    router: RunningDoors, http: httpx.AsyncClient
) -> None:
    refused = await http.post("/v1/completions", json=_body("other"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        call = router_pb2_grpc.RouterServiceStub(channel).Generate(
            router_pb2.GenerateRequest(model="other", text="hi"), timeout=20
        )
        with pytest.raises(grpc.aio.AioRpcError) as status:
            await call.read()
    assert status.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_waits_for_one_model_keeps_nobody_from_another(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    await _deployed(mesh, router)
    assert router.router.ready
    waiting = [
        asyncio.create_task(http.post("/v1/completions", json=_body("other")))
        for _ in range(STREAMS)
    ]
    refused, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await until(lambda: router.router._admission.of("other") == STREAMS - STREAMS // 4)
    for task in refused:
        assert (await task).status_code == 429
    answers = [http.post("/v1/completions", json=_body("tiny")) for _ in range(STREAMS // 4)]
    assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200, 200]
    listed = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["tiny"]
    mesh.others = []
    mesh.change_routes()
    statuses = sorted([answer.status_code for answer in await asyncio.gather(*waiting)])
    assert statuses == [404] * 6 + [429] * 2


async def test_a_model_that_no_pipeline_can_run_is_told_of_itself_alone(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    await _deployed(mesh, router, unusable="odd head_dim")
    refused = await http.post("/v1/completions", json=_body("other"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "model_unusable")
    assert (await http.post("/v1/completions", json=_body("tiny"))).status_code == 200
    assert (await http.get("/readyz")).status_code == 200


async def test_a_model_that_sleeps_is_listed(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    _deploy(mesh, asleep=True)
    await until(lambda: router.router.catalogue.names() == ["tiny", "other"])
    listed = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "other"]
