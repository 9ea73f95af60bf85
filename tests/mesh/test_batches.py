from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels


async def _stats(controller: Any) -> dict[str, engine_pb2.EngineStats]:
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
    found = {}
    for pipeline in status.pipelines:
        node = next(n for n in status.nodes if n.node_id == pipeline.stages[0].node_id)
        async with channels.open_channel(node.address) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            answer = await stub.Describe(engine_pb2.DescribeRequest(), timeout=5)
            found[pipeline.pipeline_id] = answer.stats
    return found


async def test_streams_started_apart_are_decoded_together(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(160)]
    started = time.monotonic()
    alone = (await meshes.undisturbed(client, ready.url(), bodies[:1]))[0]
    one_rate = 160 / (time.monotonic() - started)
    expected = [alone]
    for body in bodies[1:]:
        expected += await meshes.undisturbed(client, ready.url(), [body])

    before = await _stats(controller)
    records = [meshes.StreamRecord() for _ in bodies]
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for body, record in zip(bodies, records, strict=True):
            group.create_task(meshes.stream_chat(client, ready.url(), body, record))
            await asyncio.sleep(0.1)
    rate = 8 * 160 / (time.monotonic() - started)
    after = await _stats(controller)

    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert record.text == wanted.text
    mean = sum(
        (after[p].decoded_sequences - before[p].decoded_sequences)
        / max(1, after[p].decode_steps - before[p].decode_steps)
        for p in after
    )
    print(f"mean decode batch {mean:.2f}, {rate:.0f} tokens/s over {one_rate:.0f} alone")
    assert mean >= 6
    assert rate >= 3 * one_rate
