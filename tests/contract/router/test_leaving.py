"""Clients that leave, and routers that stop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, errors
from services.common.generation import GenerationKind, ModelRef
from services.common.roles import Role
from services.router import router as router_module
from services.router.__main__ import RunningDoors
from services.router.ask import Ask
from services.router.cancels import TELLING_AT_ONCE
from services.router.model import Prompt, ServedModel
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until


async def test_a_reader_that_leaves_detaches_and_cancels_nothing(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.limit = 10
    await ask(http, until=lambda told: len(told.text()) > 5)
    await until(lambda: mesh.readers == 0)
    assert mesh.cancels == []


async def test_a_reader_that_leaves_before_its_event_is_there_detaches(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    first = await ask(http, until=lambda told: len(told.text()) > 5)
    await until(lambda: mesh.readers == 0)
    task = asyncio.create_task(resume(http, first.generation_id, "500-00000000"))
    await until(lambda: mesh.readers == 1)
    task.cancel()
    await until(lambda: mesh.readers == 0 and router.router.streams == 0)


async def test_nothing_begins_for_a_client_that_left_before_a_pipeline_came(
    mesh: FakeMesh,
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    async with mesh.router(route_wait_s=60) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await until(lambda: router.router.ready)  # then it is for the routes alone
            mesh.alive = [False, False]
            mesh.change_routes()
            await until(lambda: not router.router.ready)
            task = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await until(lambda: router.router._admission.total == 1)
            task.cancel()
            await until(lambda: router.router._admission.total == 0)
    assert mesh.calls == []


async def test_a_reader_that_sent_a_request_ahead_detaches_too(mesh: FakeMesh) -> None:
    mesh.limit = 10
    body = b'{"model": "tiny", "prompt": "hi", "stream": true}'
    async with mesh.router(comment_s=0.1) as router:
        _, writer = await asyncio.open_connection("127.0.0.1", router.http_port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
            + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        await until(lambda: mesh.sampled >= 10)
        writer.transport.abort()
        await until(lambda: mesh.readers == 0 and router.router.streams == 0)


async def test_a_client_that_leaves_a_whole_answer_detaches(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    mesh.limit = 10
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    task = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    await until(lambda: mesh.sampled >= 10)
    task.cancel()
    await until(lambda: mesh.readers == 0)
    assert mesh.cancels == []


def _told(mesh: FakeMesh) -> list[tuple[str, int, bool]]:
    return [(told.generation_id, told.epoch, told.resumable) for told in mesh.detaches]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_before_its_answer_begins_parks_its_generation(
    mesh: FakeMesh, http: httpx.AsyncClient, stream: bool
) -> None:
    mesh.limit = 0 if stream else 10
    body = {"model": "tiny", "prompt": "hi", "stream": stream}
    task = asyncio.create_task(http.post("/v1/completions", json=body))
    await until(lambda: len(mesh.calls) == 1)
    task.cancel()
    await until(lambda: mesh.detaches)
    assert _told(mesh) == [(mesh.calls[0][1].request.generation_id, 1, False)]
    assert mesh.cancels == []


async def test_a_client_that_can_come_back_by_an_event_is_told_apart(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    told = await ask(http, until=lambda told: len(told.text()) > 5)
    await until(lambda: mesh.readers == 0)
    task = asyncio.create_task(resume(http, told.generation_id, told.ids[0]))
    await until(lambda: mesh.readers == 1)
    task.cancel()
    await until(lambda: mesh.readers == 0 and router.router.streams == 0)
    await until(lambda: len(mesh.detaches) == 2)
    assert _told(mesh) == [(told.generation_id, 1, True)] * 2
    readers = [call.reader for _, call in mesh.calls]
    assert [one.reader for one in mesh.detaches] == readers, "each is named as its call named it"
    assert len(set(readers)) == 2


async def test_a_whole_answer_that_was_given_tells_nobody(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    body = {"model": "tiny", "prompt": "hi"}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    await until(lambda: router.router.streams == 0 and mesh.readers == 0)
    assert mesh.detaches == []


@pytest.mark.parametrize("named", [False, True])
async def test_a_grpc_client_that_leaves_before_it_knows_a_name_parks_its_generation(
    mesh: FakeMesh, router: RunningDoors, named: bool
) -> None:
    mesh.limit = 0
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.GenerateRequest(
            model="tiny", text="hi", generation_id="mine" if named else ""
        )
        call = stub.Generate(request, timeout=60)
        await until(lambda: mesh.readers == 1)
        call.cancel()
        await until(lambda: mesh.readers == 0 and router.router.streams == 0)
        await until(lambda: mesh.detaches)
    assert [told.resumable for told in mesh.detaches] == [named]


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_prompt_in_the_making_counts_though_its_client_left(
    router: RunningDoors, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    prompt, text = ServedModel.prompt, "capital " * 1000

    def slow(self: ServedModel, ask: Ask, created_unix_s: int) -> Prompt:
        if ask.prompt == text:
            begun.set()
            go_on.wait(60)
        return prompt(self, ask, created_unix_s)

    monkeypatch.setattr(ServedModel, "prompt", slow)
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        if door == "http":
            body = {"model": "tiny", "prompt": text, "max_tokens": 1}
            left: Any = asyncio.create_task(http.post("/v1/completions", json=body))
        else:
            left = stub.Generate(router_pb2.GenerateRequest(model="tiny", text=text), timeout=60)
        try:
            await until(begun.is_set)
            left.cancel()
            for _ in range(5):  # the router has heard of it long before these are answered
                other = router_pb2.GenerateRequest(model="tiny", text="hi")
                assert [event async for event in stub.Generate(other, timeout=60)]
            assert router.router._admission.total == 1
        finally:
            go_on.set()
        await until(lambda: router.router._admission.total == 0)


async def test_a_stopping_router_sends_its_readers_elsewhere(
    mesh: FakeMesh, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    sent: list[Any] = []
    async with mesh.router() as router:
        url = f"http://127.0.0.1:{router.http_port}"
        client = httpx.AsyncClient(base_url=url, timeout=60)
        task = asyncio.create_task(ask(client, until=lambda t: sent.append(t)))
        await until(lambda: sent and len(sent[-1].text()) > 10)
    told = await task
    await client.aclose()
    assert told.errors[0]["code"] == "unavailable"
    mesh.limit = 1 << 30
    async with mesh.router() as other:
        url = f"http://127.0.0.1:{other.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            rest = await resume(client, told.generation_id, told.ids[-2])
    assert told.text() + rest.text() == REPLY


async def test_a_stopping_router_sends_who_waits_for_a_pipeline_elsewhere(mesh: FakeMesh) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    async with mesh.router(route_wait_s=60, shutdown_grace_s=5) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        client = httpx.AsyncClient(base_url=url, timeout=60)
        mesh.alive = [False, False]
        mesh.change_routes()
        await until(lambda: not router.router.ready)
        task = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await until(lambda: router.router._admission.total == 1)
    answer = await task
    await client.aclose()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "stops" in answer.json()["error"]["message"]


async def test_a_request_in_the_making_begins_nothing_at_a_router_that_stopped(
    mesh: FakeMesh, router: RunningDoors, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ask("tiny", GenerationKind.COMPLETION, (1, 2))
    catalogue, go_on = router.router.catalogue, asyncio.Event()
    load = catalogue.load

    async def slow(ref: ModelRef) -> ServedModel:
        await go_on.wait()
        return await load(ref)

    monkeypatch.setattr(catalogue, "loaded", lambda _name: None)
    monkeypatch.setattr(catalogue, "load", slow)
    task = asyncio.create_task(router.router.generate(ask))
    await until(lambda: router.router._admission.total == 1)
    await router.router.close()
    go_on.set()
    with pytest.raises(errors.Unavailable):
        await task
    assert (mesh.calls, router.router.streams) == ([], 0)


async def test_who_leaves_while_its_call_goes_out_lets_go_of_what_began(
    mesh: FakeMesh, router: RunningDoors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "TURNS_TO_LEAVE", 1 << 40)
    task = asyncio.create_task(
        router.router.generate(Ask("tiny", GenerationKind.COMPLETION, (1, 2)))
    )
    await until(lambda: mesh.readers == 1)
    assert router.router.streams == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (router.router.streams, router.router._admission.total) == (0, 0)
    await until(lambda: mesh.readers == 0 and len(mesh.detaches) == 1)


async def test_a_crowd_that_leaves_is_told_of_in_few_messages(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient
) -> None:
    mesh.limit = 0
    mesh.hears.clear()
    body = {"model": "tiny", "prompt": "hi", "stream": True}
    crowd = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(60)]
    await until(lambda: len(mesh.calls) == 60)
    for one in crowd:
        one.cancel()
    await until(lambda: router.router.streams == 0)
    mesh.hears.set()
    await until(lambda: len(mesh.detaches) == 60)
    assert {name for name, _, _ in _told(mesh)} == {
        call.request.generation_id for _, call in mesh.calls
    }
    assert mesh.detach_calls <= (TELLING_AT_ONCE + 1) * len(mesh.alive)
