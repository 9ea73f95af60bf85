from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels


async def _engines(controller: Any) -> dict[str, engine_pb2.DescribeResponse]:
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
    found = {}
    for node in status.nodes:
        if node.state != controller_pb2.NODE_STATE_READY:
            continue
        async with channels.open_channel(node.address) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            found[node.node_id] = await stub.Describe(engine_pb2.DescribeRequest(), timeout=5)
    return found


async def test_a_client_resumes_at_another_router_after_router_and_head_died_together(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    body = meshes.request_bodies(200)[1]
    expected = (await meshes.undisturbed(client, ready.url(), [body]))[0]
    record = meshes.StreamRecord()
    task = asyncio.create_task(meshes.stream_chat(client, ready.url(0), body, record))
    await meshes.until(lambda: len(record.arrivals_s) >= 60)
    before = await _engines(controller)
    status = await ready.status()
    generation = next(g for g in status["generations"] if g["id"] == record.generation_id)
    acknowledged = generation["journaled"]
    pipeline = next(p for p in status["pipelines"] if p["id"] == generation["pipeline"])
    head = next(n for n in status["nodes"] if n["id"] == pipeline["stages"][0]["node"])
    router = next(s for s in status["services"] if str(s["http"]).endswith(str(ready.http_port)))
    os.kill(router["pid"], signal.SIGKILL)
    os.kill(head["pid"], signal.SIGKILL)
    await task
    assert not record.done
    assert record.generation_id
    await meshes.resume_stream(client, ready.url(1), record)
    assert record.complete, record.error
    assert (record.text, record.usage) == (expected.text, expected.usage)
    assert record.roles == 1
    after = await _engines(controller)
    replayed = sum(
        engine.stats.replayed_tokens - (before[node].stats.replayed_tokens if node in before else 0)
        for node, engine in after.items()
    )
    assert acknowledged > 0
    assert replayed >= acknowledged
    await ready.until_ready(2)
