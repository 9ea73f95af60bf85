"""A generation that goes on under other arithmetic says so, everywhere it can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prometheus_client import REGISTRY
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh

CHANGED = ": the arithmetic changed from bf16 to fp32"


@asynccontextmanager
async def killed_at(mesh: FakeMesh, sampled: int, other: str = "fp32") -> AsyncIterator[None]:
    """The first head that is asked dies behind so many ids; the other one's class."""
    mesh.limit = sampled

    async def kill() -> None:
        async with asyncio.timeout(60):
            while mesh.sampled < sampled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        first = mesh.calls[0][0]
        mesh.numerics = ["bf16" if index == first else other for index in range(2)]
        await mesh.kill(first)
        mesh.limit = 1 << 30

    mesh.numerics = ["bf16", "bf16"]
    killer = asyncio.create_task(kill())
    yield
    await killer


def counted() -> float:
    labels = {"model": "tiny"}
    return REGISTRY.get_sample_value("shunt_router_arithmetic_changed_total", labels) or 0.0


async def test_a_stream_carries_a_comment_before_the_text_that_comes_of_it(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    before = counted()
    async with killed_at(mesh, 10):
        told = await ask(http)
    assert told.text() == REPLY
    assert [c for c in told.comments if "arithmetic" in c] == [CHANGED]
    assert counted() == before + 1
    answer = (await http.get(f"/v1/generations/{told.generation_id}")).json()
    assert answer["numerics_classes"] == ["bf16", "fp32"]


async def test_a_whole_answer_names_the_classes_in_a_header(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    plain = await http.post("/v1/chat/completions", json=body)
    assert "x-numerics-classes" not in plain.headers
    mesh.calls.clear()
    async with killed_at(mesh, mesh.sampled + 10):
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.headers["x-numerics-classes"] == "bf16, fp32"


async def test_a_grpc_stream_carries_it_as_an_event(mesh: FakeMesh, router: RunningDoors) -> None:
    request = router_pb2.GenerateRequest(
        model="tiny",
        sampling=router_pb2.SamplingOptions(temperature=0.0),
        chat=router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content="hi")]),
    )
    changes, text = [], ""
    address = f"127.0.0.1:{router.grpc_port}"
    async with channels.open_channel(address, Role.ROUTER) as channel, killed_at(mesh, 10):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        async for event in stub.Generate(request, timeout=60):
            changes += [(c.before, c.now, len(text)) for c in event.arithmetic_changes]
            text += "".join(delta.text for delta in event.deltas)
    assert text == REPLY
    assert [change[:2] for change in changes] == [("bf16", "fp32")]
    assert 0 < changes[0][2] < len(REPLY)


async def test_a_kill_within_a_class_is_no_change(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    async with killed_at(mesh, 10, other="bf16"):
        told = await ask(http)
    assert told.text() == REPLY
    assert not [comment for comment in told.comments if "arithmetic" in comment]


async def test_the_state_of_a_generation_is_told_without_its_text(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    told = await ask(http)
    answer = (await http.get(f"/v1/generations/{told.generation_id}")).json()
    tokens = len(mesh.ids_of(REPLY)) + 1
    assert [(c["index"], c["tokens"]) for c in answer["choices"]] == [(0, tokens)]
    assert (answer["state"], answer["epoch"], answer["pipeline"]) == ("finished", 1, None)
    assert (answer["model"], answer["object"]) == ("tiny", "generation")
    unknown = await http.get("/v1/generations/g" + "0" * 8 + "1" * 24)
    assert unknown.status_code in (404, 410)
