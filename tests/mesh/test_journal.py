from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import grpc
import httpx
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

TOKENS, BEGUN = 200, 30


def _address(status: controller_pb2.GetStatusResponse, node_id: str) -> str:
    return next(node.address for node in status.nodes if node.node_id == node_id)


async def _engines(controller: Any) -> dict[str, engine_pb2.DescribeResponse]:
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    found = {}
    for node in (node for node in status.nodes if node.address):
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            # One that counts as lost may be back in a moment, or never answer again.
            with contextlib.suppress(grpc.aio.AioRpcError):
                found[node.node_id] = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
    return found


def _read_again(engine: engine_pb2.DescribeResponse) -> int:
    """Output ids that it replayed, and, with what it found of prompts, those it found computed."""
    return engine.stats.replayed_tokens + engine.stats.prefix_hits


async def test_a_client_resumes_at_another_router_after_router_and_head_died_together(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    body = meshes.request_bodies(TOKENS)[1] | {"ignore_eos": True}
    expected = (await meshes.undisturbed(client, ready.url(), [body]))[0]
    record = meshes.StreamRecord()
    before = await _engines(controller)
    task = asyncio.create_task(meshes.stream_chat(client, ready.url(0), body, record))
    await meshes.until(lambda: len(record.arrivals_s) >= BEGUN)
    status = await ready.status()
    before_status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    generation = next(g for g in status["generations"] if g["id"] == record.generation_id)
    acknowledged = generation["journaled"]
    pipeline = next(p for p in status["pipelines"] if p["id"] == generation["pipeline"])
    head = next(n for n in status["nodes"] if n["id"] == pipeline["stages"][0]["node"])
    router = next(s for s in status["services"] if str(s["http"]).endswith(str(ready.http_port)))
    async with channels.open_channel(_address(before_status, head["id"]), Role.ENGINE) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        last = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
        os.kill(head["pid"], signal.SIGKILL)
        os.kill(router["pid"], signal.SIGKILL)
    await task
    assert not record.done
    assert record.generation_id
    await meshes.resume_stream(client, ready.url(1), record)
    assert record.complete, record.error
    assert (record.text, record.usage) == (expected.text, expected.usage)
    assert record.roles == 1
    after = await _engines(controller)
    replayed = sum(
        _read_again(engine) - (_read_again(before[node]) if node in before else 0)
        for node, engine in after.items()
    )
    assert acknowledged > 0
    assert replayed >= acknowledged
    by_the_dead = last.stats.sampled_tokens - before[head["id"]].stats.sampled_tokens
    by_the_living = sum(
        engine.stats.sampled_tokens - (before[node].stats.sampled_tokens if node in before else 0)
        for node, engine in after.items()
    )
    beyond = by_the_dead + by_the_living - expected.usage["completion_tokens"]
    print(f"{beyond} tokens sampled twice of {by_the_dead}, of which {acknowledged} were journaled")
    assert beyond <= by_the_dead - acknowledged
    await ready.until_ready(2)
