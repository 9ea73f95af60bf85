"""Routers that are told to stop while they serve."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, health
from services.common.roles import Role
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until

CHAT = {"model": "tiny", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}

GREEDY = router_pb2.SamplingOptions(temperature=0.0)


def _client(http_port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60)


async def _refused(http_port: int) -> bool:
    try:
        async with _client(http_port) as client:
            await client.get("/healthz")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # connected just before it stopped listening, and let go
        return False
    return False


async def _ready(http_port: int, status: int) -> bool:
    try:
        async with _client(http_port) as client:
            return (await client.get("/readyz")).status_code == status
    except httpx.TransportError:
        return False


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_router_that_leaves_is_not_ready_and_serves_until_others_have_noticed(
    mesh: FakeMesh,
) -> None:
    async with mesh.router(leave_pause_s=60) as router, _client(router.http_port) as kept:
        await until(lambda: router.router.ready)
        assert (await kept.get("/readyz")).json() == {"ready": True}
        leaving = asyncio.create_task(router.leave())
        await until(lambda: not router.router.ready)
        found = await kept.get("/readyz")
        assert (found.status_code, found.json()["reason"]) == (503, "this router stops")
        assert found.headers["connection"] == "close"
        async with _client(router.http_port) as client:
            assert (await client.head("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == REPLY
        assert answer.headers["connection"] == "close"
        assert not await health.is_serving(f"127.0.0.1:{router.grpc_port}", Role.ROUTER)
        async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            text = router_pb2.GenerateRequest(model="tiny", text="hi", sampling=GREEDY)
            assert [event async for event in stub.Generate(text, timeout=60)]
        leaving.cancel()


async def test_streams_end_by_themselves_behind_closed_doors(mesh: FakeMesh, ask: Any) -> None:
    mesh.limit = 10
    sent: list[Any] = []
    async with (
        mesh.router(leave_pause_s=0.1, drain_s=60) as router,
        _client(router.http_port) as client,
        _client(router.http_port) as idle,
        channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel,
    ):
        await idle.get("/healthz")
        stub = router_pb2_grpc.RouterServiceStub(channel)
        text = router_pb2.GenerateRequest(model="tiny", text="hi", sampling=GREEDY)
        called = stub.Generate(text, timeout=60)
        events = [await anext(aiter(called))]
        streamed = asyncio.create_task(ask(client, until=lambda told: sent.append(told)))
        whole = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: sent and len(sent[-1].text()) > 5 and router.router.streams == 3)
        leaving = asyncio.create_task(router.leave())
        await _until(lambda: _refused(router.http_port))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            _ = [event async for event in stub.Generate(text, timeout=60)]
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not leaving.done()
        mesh.limit = 1 << 30
        told = await streamed
        events += [event async for event in called]
        await leaving
    assert (told.text(), told.errors, told.done) == (REPLY, [], 1)
    assert (await whole).json()["choices"][0]["message"]["content"] == REPLY
    assert "".join(d.text for event in events for d in event.deltas) == REPLY
    assert [event.HasField("usage") for event in events][-1]


async def test_streams_longer_than_the_drain_go_on_at_another_router(
    mesh: FakeMesh, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    sent: list[Any] = []
    async with mesh.router(leave_pause_s=0, drain_s=0.3) as router:
        client = _client(router.http_port)
        task = asyncio.create_task(ask(client, until=lambda told: sent.append(told)))
        await until(lambda: sent and len(sent[-1].text()) > 5)
        await router.leave()
        assert not task.done()
    told = await task
    await client.aclose()
    assert (told.errors[0]["code"], told.done) == ("unavailable", 0)
    mesh.limit = 1 << 30
    async with mesh.router() as other, _client(other.http_port) as client:
        rest = await resume(client, told.generation_id, told.ids[-2])
    assert told.text() + rest.text() == REPLY


@asynccontextmanager
async def _process(mesh: FakeMesh, http_port: int, **settings: Any) -> AsyncIterator[Any]:
    chosen = {
        "http_port": http_port,
        "grpc_port": 0,
        "controller_address": mesh.controller_address,
        "tensorstore_address": mesh.store_address,
        **settings,
    }
    variables = {f"SHUNT_ROUTER_{name.upper()}": str(value) for name, value in chosen.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.router"), env={**os.environ, **variables}
    )
    try:
        await _until(lambda: _ready(http_port, 200))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_process_serves_its_streams_to_the_end_and_ends_well(
    mesh: FakeMesh, ask: Any, unused_port: int
) -> None:
    mesh.limit = 10
    sent: list[Any] = []
    async with (
        _process(mesh, unused_port, leave_pause_s=0.1, drain_s=60) as process,
        _client(unused_port) as client,
    ):
        task = asyncio.create_task(ask(client, until=lambda told: sent.append(told)))
        await until(lambda: sent and len(sent[-1].text()) > 5)
        process.send_signal(signal.SIGTERM)
        await _until(lambda: _refused(unused_port))
        mesh.limit = 1 << 30
        told = await task
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    assert (told.text(), told.errors, told.done) == (REPLY, [], 1)


async def test_told_twice_a_process_ends_at_once(
    mesh: FakeMesh, ask: Any, unused_port: int
) -> None:
    mesh.limit = 10
    sent: list[Any] = []
    async with (
        _process(mesh, unused_port, leave_pause_s=600, drain_s=600) as process,
        _client(unused_port) as client,
    ):
        task = asyncio.create_task(ask(client, until=lambda told: sent.append(told)))
        await until(lambda: sent and len(sent[-1].text()) > 5)
        process.send_signal(signal.SIGTERM)
        await _until(lambda: _ready(unused_port, 503))
        process.send_signal(signal.SIGTERM)
        told = await task
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    assert (told.errors[0]["code"], told.done) == ("unavailable", 0)
