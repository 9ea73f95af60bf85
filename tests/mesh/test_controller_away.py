from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes
from services.common import health
from services.common.roles import Role
from tests.mesh.lasting import sampled


def _controller(status: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in status["services"] if s["name"] == "controller")
    return found


async def _streams(
    mesh: meshes.Mesh, client: httpx.AsyncClient, bodies: list[dict[str, Any]], tokens: int
) -> tuple[list[meshes.StreamRecord], list[asyncio.Task[meshes.StreamRecord]]]:
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > tokens for r in records))
    return records, tasks


async def test_streams_go_on_without_the_controller_and_its_journal_is_whole(
    ready: meshes.Mesh, client: httpx.AsyncClient
) -> None:
    bodies = sampled(200)
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    killed = _controller(await ready.status())
    records, tasks = await _streams(ready, client, bodies, tokens=10)
    os.kill(killed["pid"], signal.SIGKILL)
    had = [len(r.arrivals_s) for r in records]
    await meshes.until(
        lambda: all(len(r.arrivals_s) >= n + 5 for r, n in zip(records, had, strict=True))
    )
    assert not await health.is_serving(killed["grpc"], Role.CONTROLLER), (
        "the controller was back already"
    )
    await asyncio.gather(*tasks)
    await ready.until_ready(2)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
        again = meshes.StreamRecord(generation_id=record.generation_id)
        await meshes.resume_stream(client, ready.url(1), again)
        assert (again.text, again.usage) == (wanted.text, wanted.usage), again.error


async def test_a_pipeline_killed_while_the_controller_is_away_is_survived(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    bodies = sampled(200)
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    killed = _controller(await ready.status())
    records, tasks = await _streams(ready, client, bodies, tokens=10)
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    generations = {g.generation_id: g.pipeline_id for g in status.generations}
    pipeline = generations[records[0].generation_id]
    node = next(n for n in status.nodes if n.pipeline_id == pipeline and n.stage_index == 0)
    os.kill(killed["pid"], signal.SIGKILL)
    os.kill(node.pid, signal.SIGKILL)
    await asyncio.gather(*tasks)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    await ready.until_ready(2)
