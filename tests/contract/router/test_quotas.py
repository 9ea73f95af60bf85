"""What a tenant may take, at both doors and over several routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import httpx
import openai
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import ResourceExhausted
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.key_rings import KeyRing
from tests.waiting import until

COMPLETIONS = "/v1/completions"
ASKED = {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 5}


@pytest.fixture
def ring(ring: KeyRing) -> KeyRing:
    """With tenants that each have one limit, which nothing fills while a test runs."""
    ring.add("few", requests_per_minute=3)
    ring.add("short", tokens_per_minute=20)
    ring.add("narrow", streams=2)
    return ring


@asynccontextmanager
async def _asking(
    router: RunningDoors, ring: KeyRing, tenant: str
) -> AsyncIterator[httpx.AsyncClient]:
    url, headers = f"http://127.0.0.1:{router.http_port}", ring.shown(tenant)
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers) as client:
        yield client


def _exhausted(answer: httpx.Response) -> bool:
    """A refusal that clients act upon."""
    if answer.status_code != 429:
        return False
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    whole_s, milliseconds = (answer.headers[n] for n in ("retry-after", "retry-after-ms"))
    assert 0 < int(milliseconds) <= 1000 * int(whole_s) <= int(milliseconds) + 1000
    return True


async def test_requests_beyond_the_limit_are_refused_and_say_when_to_come_back(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    async with _asking(keyed, ring, "few") as client:
        answers = [await client.post(COMPLETIONS, json=ASKED) for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert [_exhausted(a) for a in answers] == [False, False, False, True, True]
        remaining = [a.headers["x-ratelimit-remaining-requests"] for a in answers]
        assert remaining == ["2", "1", "0", "0", "0"]
        assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"3"}
        assert all(a.headers["x-ratelimit-reset-requests"].endswith("s") for a in answers)
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
    async with _asking(keyed, ring, "acme") as client:
        answer = await client.post(COMPLETIONS, json=ASKED)
        assert answer.status_code == 200, "it is not another tenant's limit"
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert len(mesh.journal) == 4, "what is refused begins nothing"


async def test_the_official_client_knows_the_refusal(keyed: RunningDoors, ring: KeyRing) -> None:
    url = f"http://127.0.0.1:{keyed.http_port}/v1"
    key = ring.keys["few"]
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        for _ in range(3):
            await client.completions.create(model="tiny", prompt="hi", max_tokens=3)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.completions.create(model="tiny", prompt="hi", max_tokens=3)
    assert refused.value.code == "rate_limit_exceeded"


async def test_tokens_are_taken_beforehand_and_given_back_at_the_end(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    prompt = len(mesh.ids_of("hi"))
    async with _asking(keyed, ring, "short") as client:
        first = await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 19 - prompt})
        usage = first.json()["usage"]
        assert usage["total_tokens"] == 19
        refused = await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 8})
        assert _exhausted(refused)
        assert refused.headers["x-ratelimit-limit-tokens"] == "20"


async def test_what_an_answer_did_not_come_to_is_there_for_the_next(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    mesh.replies = ["a"]
    async with _asking(keyed, ring, "short") as client:
        for _ in range(3):
            answer = await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 10})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] <= 2


async def test_a_reader_who_leaves_or_comes_back_gets_nothing_back_before_the_end(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    mesh.limit = 2
    body = {**ASKED, "max_tokens": 15, "stream": True}
    async with _asking(keyed, ring, "short") as client:
        async with client.stream("POST", COMPLETIONS, json=body) as first:
            name = first.headers["x-generation-id"]
            async with client.stream("GET", f"/v1/generations/{name}/stream") as second:
                assert second.status_code == 200
                await first.aread()
                assert "superseded" in first.text
                assert _exhausted(await client.post(COMPLETIONS, json=ASKED))
                await client.delete(f"/v1/generations/{name}")
                await second.aread()
        mesh.limit = 1 << 30
        answer = await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 3})
        assert answer.status_code == 200, answer.text


async def test_a_request_that_cannot_be_costs_no_tokens(keyed: RunningDoors, ring: KeyRing) -> None:
    async with _asking(keyed, ring, "short") as client:
        for _ in range(3):
            bad = {**ASKED, "logit_bias": {"99999999": 1}, "max_tokens": 15}
            assert (await client.post(COMPLETIONS, json=bad)).status_code == 400
        assert (await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 15})).status_code == 200


async def test_streams_at_once_are_bounded_and_a_place_is_free_at_the_end(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    mesh.limit = 2
    async with _asking(keyed, ring, "narrow") as client:
        tasks = [
            asyncio.create_task(client.post(COMPLETIONS, json={**ASKED, "prompt": f"hi {n}"}))
            for n in range(2)
        ]
        await until(lambda: mesh.readers == 2)
        assert _exhausted(await client.post(COMPLETIONS, json=ASKED))
        mesh.limit = 1 << 30
        assert {(await task).status_code for task in tasks} == {200}
        assert (await client.post(COMPLETIONS, json=ASKED)).status_code == 200


async def test_streams_that_begin_together_are_counted_before_they_have_begun(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    mesh.limit = 2
    async with _asking(keyed, ring, "narrow") as client, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(client.post(COMPLETIONS, json={**ASKED, "prompt": f"hi {n}"}))
            for n in range(12)
        ]
        await until(lambda: sum(task.done() for task in tasks) == 10)
        mesh.limit = 1 << 30
    assert sorted(task.result().status_code for task in tasks) == [200] * 2 + [429] * 10


async def test_grpc_is_held_to_the_same_limits(keyed: RunningDoors, ring: KeyRing) -> None:
    sampling = router_pb2.SamplingOptions(max_tokens=3, temperature=0.0)
    request = router_pb2.GenerateRequest(model="tiny", text="hi", sampling=sampling)
    metadata = tuple(ring.shown("few").items())
    async with channels.open_channel(f"127.0.0.1:{keyed.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        ended: list[Any] = []
        for _ in range(4):
            try:
                async for event in stub.Generate(request, timeout=60, metadata=metadata):
                    last = event
                ended.append(last.HasField("usage"))
            except grpc.RpcError as error:
                ended.append(from_rpc_error(error))
    assert ended[:3] == [True] * 3
    assert isinstance(ended[3], ResourceExhausted)
    assert 0 < ended[3].retry_after_s <= 20


async def test_routers_share_a_limit(mesh: FakeMesh, ring: KeyRing) -> None:
    """Whatever is asked of whom: as much as one router would let pass, and one for each of them."""
    limit = 40
    ring.add("shared", requests_per_minute=limit)
    async with AsyncExitStack() as held:
        routers = [
            await held.enter_async_context(
                mesh.router(router_id=f"r{number}", keys=ring.path, report_s=0.1)
            )
            for number in range(2)
        ]
        clients = [
            await held.enter_async_context(_asking(router, ring, "shared")) for router in routers
        ]
        await until(lambda: {r.router.quotas.shares.routers for r in routers} == {2})
        began_s, passed = time.monotonic(), 0
        for number in range(90):
            client = clients[number % 3 == 0]
            passed += (await client.post(COMPLETIONS, json=ASKED)).status_code == 200
        took_s = time.monotonic() - began_s
    assert passed <= limit * (1 + took_s / 60) + 2
    assert passed >= limit / 2, "and it is used"


async def test_a_router_is_ready_once_it_knows_its_share(mesh: FakeMesh) -> None:
    """Before that it would count itself alone, beside those that hold all there is."""
    mesh.deals.clear()
    async with mesh.router(control_timeout_s=600) as router:  # its report waits as long as we do
        await until(lambda: "share" in getattr(router.router.why_not_ready, "message", ""))
        assert mesh.demands[0].routers == 0, "it was told nothing yet"
        mesh.deals.set()
        await until(lambda: router.router.ready)
        assert router.router.quotas.shares.routers == 1
