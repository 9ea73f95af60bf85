"""More than heads can do: who is refused, when, and with what."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.engine.v1 import engine_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import ResourceExhausted
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from services.router.ask import Ask
from services.router.core.least_rows import LOOKED_AT, OF_LATE
from services.router.model import Prompt, ServedModel
from tests.fake_mesh import FakeMesh
from tests.waiting import until

BODY = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
IDLE = engine_pb2.HeadLoad(
    places=8, free_positions=4096, step_rows=256, step_s=0.01, row_s=0.001, answer_tokens=50
)


def busy(queued: int) -> engine_pb2.HeadLoad:
    load = engine_pb2.HeadLoad()
    load.CopyFrom(IDLE)
    load.running = 8
    load.tenants.add(running=8, queued=queued, rows=20 * queued, weight=1)
    return load


def tell(mesh: FakeMesh, *loads: engine_pb2.HeadLoad) -> None:
    for index, load in enumerate(loads):
        news = engine_pb2.WatchPrefixesResponse(block_positions=16, load=load)
        mesh.prefixes[index].append(news)


async def known(router: RunningDoors, queued: int) -> None:
    """The router knows that so many wait at both heads."""
    loads = router.router._dispatch.core.predictor._loads
    await until(
        lambda: [sum(t.queued for t in load.tenants) for load in loads.values()] == [queued] * 2
    )


async def test_a_deadline_that_no_head_can_meet_is_refused_with_a_time_to_come_back(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    tell(mesh, busy(100), busy(100))
    await known(router, 100)
    calls = len(mesh.calls)
    for headers in ({"x-shunt-deadline-ms": "500"}, {"x-shunt-deadline-ms": "2000"}):
        refused = await http.post("/v1/completions", json=BODY, headers=headers)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 2
        assert "after the deadline" in refused.json()["error"]["message"]
        assert "x-should-retry" not in refused.headers
    assert len(mesh.calls) == calls, "no head was asked"
    for headers in ({"x-shunt-deadline-ms": "600000"}, {}):
        answered = await http.post("/v1/completions", json=BODY, headers=headers)
        assert answered.status_code == 200


async def test_the_same_over_grpc_says_when_to_come_back(
    mesh: FakeMesh, router: RunningDoors
) -> None:
    tell(mesh, busy(100), busy(100))
    await known(router, 100)
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        asked = router_pb2.GenerateRequest(model="tiny", text="hi", deadline_ms=500)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub.Generate(asked, timeout=60):
                pass
        late = from_rpc_error(failed.value)
        assert isinstance(late, ResourceExhausted)
        assert late.field == "deadline"
        assert late.retry_after_s > 1
        asked.deadline_ms = 600_000
        assert [event async for event in stub.Generate(asked, timeout=60)]
        asked.deadline_ms = 0
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub.Generate(asked, timeout=60):
                pass
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_class_has_a_deadline_by_its_setting(mesh: FakeMesh) -> None:
    async with mesh.router(deadline_s={"standard": 0.5}) as router:
        tell(mesh, busy(100), busy(100))
        await known(router, 100)
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            assert (await http.post("/v1/completions", json=BODY)).status_code == 429
            longer = {"x-shunt-deadline-ms": "600000"}
            answered = await http.post("/v1/completions", json=BODY, headers=longer)
            assert answered.status_code == 200


async def test_who_can_be_answered_in_time_goes_where_that_is(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    tell(mesh, busy(100), IDLE)
    loads = router.router._dispatch.core.predictor._loads
    await until(lambda: len(loads) == 2)
    before = len(mesh.calls)
    headers = {"x-shunt-deadline-ms": "2000"}
    for _ in range(4):
        answered = await http.post("/v1/completions", json=BODY, headers=headers)
        assert answered.status_code == 200
    assert {call.formation_id for _, call in mesh.calls[before:]} == {"f1"}


async def test_of_far_more_than_fits_what_is_taken_is_answered_and_the_rest_told_at_once(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    """What was sent since heads told their load counts: a burst is not taken whole."""
    tell(mesh, IDLE, IDLE)
    await known(router, 0)
    headers = {"x-shunt-deadline-ms": "1500"}

    async def ask() -> httpx.Response:
        return await http.post("/v1/completions", json=BODY, headers=headers)

    answers: list[Any] = await asyncio.gather(*(ask() for _ in range(120)))
    taken = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(taken) + len(refused) == len(answers)
    assert len(taken) >= 16, "as many as there are places, and those that can wait"
    assert refused
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_of_those_that_are_late_for_their_prompts_few_are_tokenised(
    mesh: FakeMesh,
    router: RunningDoors,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = engine_pb2.HeadLoad()
    slow.CopyFrom(IDLE)
    slow.row_s = 0.1
    tell(mesh, slow, slow)
    await known(router, 0)
    tokenised, prompt = 0, ServedModel.prompt

    def counted(model: ServedModel, ask: Ask, created_unix_s: int) -> Prompt:
        nonlocal tokenised
        tokenised += 1
        return prompt(model, ask, created_unix_s)

    monkeypatch.setattr(ServedModel, "prompt", counted)
    body, headers = {**BODY, "prompt": "hello " * 40}, {"x-shunt-deadline-ms": "1000"}
    for _ in range(160):
        assert (await http.post("/v1/completions", json=body, headers=headers)).status_code == 429
    assert tokenised <= OF_LATE + 160 // LOOKED_AT
    short = await http.post("/v1/completions", json=BODY, headers=headers)
    assert short.status_code == 200


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1.5", "3600001"])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", BODY), ("/v1/responses", {"model": BODY["model"], "input": "Hello"})],
)
async def test_a_deadline_that_is_none_is_refused_by_name(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], text: str
) -> None:
    headers = {"x-shunt-deadline-ms": text}
    refused = await http.post(path, json=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "x-shunt-deadline-ms"
    assert "1 to 3600000" in refused.json()["error"]["message"]
