"""What heads have cached: how it is counted, and where it takes a request."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from shuntserve.engine.v1 import engine_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, wire
from services.common.prefix import chain_of, told
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.waiting import until

BLOCK = 16
LONG = {"messages": [{"role": "user", "content": "the same long story " * 20}], "max_tokens": 1}


def names(mesh: FakeMesh) -> list[int]:
    """Of the last prompt's blocks."""
    request = wire.request_from(mesh.calls[-1][1].request)
    return list(map(told, chain_of(request, BLOCK)))


def news(added: list[int], *removed: int, whole: bool = False) -> engine_pb2.WatchPrefixesResponse:
    return engine_pb2.WatchPrefixesResponse(
        block_positions=BLOCK, whole=whole, added=added, removed=removed
    )


async def heard(router: RunningDoors, mesh: FakeMesh, formation_ids: set[str]) -> None:
    """The router knows that just these formations have the last prompt's beginning."""
    request = wire.request_from(mesh.calls[-1][1].request)
    await until(lambda: set(router.router._dispatch.core.prefixes.found(request)) == formation_ids)


async def test_what_was_cached_is_told_over_both_doors_and_at_every_router(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.cached_tokens = 32
    streamed = await ask(http)
    assert streamed.usages[0]["prompt_tokens_details"] == {"cached_tokens": 32}
    async with mesh.router() as other:
        url = f"http://127.0.0.1:{other.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            again = await resume(client, streamed.generation_id, streamed.ids[3])
    assert again.usages == streamed.usages
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    whole = (await http.post("/v1/completions", json=body)).json()
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        asked = router_pb2.GenerateRequest(model="tiny", text="hi", cache_salt="mine")
        events = [event async for event in stub.Generate(asked, timeout=60)]
    assert events[-1].usage.cached_prompt_tokens == 32
    assert mesh.calls[-1][1].request.cache_salt == "mine"


async def test_a_salt_over_http_is_part_of_the_request_and_bounded(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    await ask(http, cache_salt="s" * 256)
    assert mesh.calls[-1][1].request.cache_salt == "s" * 256
    refused = await ask(http, cache_salt="s" * 257)
    assert refused.status == 400
    assert refused.body["error"]["param"] == "cache_salt"
    assert "at most 256" in refused.body["error"]["message"]


async def test_who_has_a_prompts_beginning_is_asked_for_the_rest(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    await ask(http, **LONG)
    assert len(names(mesh)) * BLOCK >= 128
    mesh.prefixes[1].append(news(names(mesh), whole=True))
    await heard(router, mesh, {"f1"})
    mesh.calls.clear()
    for _ in range(5):
        await ask(http, **LONG)
    assert [head for head, _ in mesh.calls] == [1] * 5
    metrics = (await http.get("/metrics")).text
    (line,) = [m for m in metrics.splitlines() if m.startswith("shunt_router_prefix_found_total{")]
    assert float(line.split()[-1]) >= 5 * len(names(mesh)) * BLOCK
    for _ in range(4):
        await ask(http, **LONG, cache_salt="other")
    assert [head for head, _ in mesh.calls[5:]].count(0) == 2
    mesh.prefixes[1].append(news([], names(mesh)[0], whole=True))
    await ask(http, **LONG)
    await heard(router, mesh, set())


async def test_who_is_asked_in_another_ones_place_is_told_who_has_the_beginning(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    await ask(http, **LONG)
    mesh.prefixes[1].append(news(names(mesh), whole=True))
    await heard(router, mesh, {"f1"})
    mesh.calls.clear()
    await asyncio.gather(*(ask(http, **LONG) for _ in range(8)))
    told_of = {head: call.prefix_holder for head, call in mesh.calls}
    assert set(told_of) == {0, 1}
    assert not told_of[1].formation_id
    holder = told_of[0]
    assert (holder.formation_id, holder.positions) == ("f1", len(names(mesh)) * BLOCK)
    assert holder.address


async def test_what_a_head_had_goes_with_it(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    await ask(http, **LONG)
    for index in range(2):
        mesh.prefixes[index].append(news(names(mesh), whole=True))
    await heard(router, mesh, {"f0", "f1"})
    await mesh.kill(1)
    await heard(router, mesh, {"f0"})
