from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes
from tests.mesh.lasting import lasting

TOKENS = 300
LASTS_S = 2.5
"""Readers leave a frozen stage one after another, and the first is to be there yet when the last
has left."""


@pytest.mark.parametrize("stage", [-1, 0], ids=["last", "head"])
async def test_streams_leave_a_frozen_stage_and_nothing_it_says_later_counts(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any, stage: int
) -> None:
    asked = await lasting(client, ready.url(), TOKENS, LASTS_S)
    bodies, expected = asked.bodies, asked.expected
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > 5 for r in records))
    status = await ready.status()
    pipelines = {g["id"]: g["pipeline"] for g in status["generations"]}
    pipeline = next(p for p in status["pipelines"] if p["id"] in pipelines.values())
    node_id = pipeline["stages"][stage]["node"]
    node = next(n for n in status["nodes"] if n["id"] == node_id)
    os.kill(node["pid"], signal.SIGSTOP)
    moved = [r for r in records if pipelines[r.generation_id] == pipeline["id"]]
    try:
        held = await _lengths_at_grant(controller, moved)
        await meshes.until(
            lambda: all(len(r.arrivals_s) > held[r.generation_id] + 5 for r in moved)
        )
        assert not any(r.done for r in moved), "nobody was left to hear what the woken stage says"
    finally:
        os.kill(node["pid"], signal.SIGCONT)
    await asyncio.gather(*tasks)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    after = await ready.until_ready(2)
    members = {s["node"] for p in after["pipelines"] for s in p["stages"] if p["state"] == "ready"}
    formations = {p["formation"] for p in after["pipelines"]}
    # a head that wakes before its node counts as lost serves on, without those who left it
    assert stage == 0 or pipeline["formation"] not in formations
    again = await meshes.undisturbed(client, ready.url(), bodies[:2])
    assert [r.text for r in again] == [r.text for r in expected[:2]]
    assert len(members) == 4


async def _lengths_at_grant(
    controller: Any, records: Sequence[meshes.StreamRecord]
) -> dict[str, int]:
    """Events each stream had had when it was granted another head."""
    waiting = {record.generation_id: record for record in records}
    lengths: dict[str, int] = {}
    events = controller.WatchEvents(controller_pb2.WatchEventsRequest(), timeout=60)
    try:
        async for event in events:
            record = waiting.pop(event.generation_id, None) if _is_grant(event) else None
            if record is not None:
                lengths[event.generation_id] = len(record.arrivals_s)
            if not waiting:
                break
    finally:
        events.cancel()
    return lengths


def _is_grant(event: controller_pb2.WatchEventsResponse) -> bool:
    return event.kind == "generation_granted"
