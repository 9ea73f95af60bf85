from __future__ import annotations

import asyncio
import os
import signal

import httpx

from bench import mesh as meshes


async def test_streams_leave_a_frozen_stage_and_nothing_it_says_later_counts(
    ready: meshes.Mesh, client: httpx.AsyncClient
) -> None:
    bodies = meshes.request_bodies(200)[:4]
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > 5 for r in records))
    status = await ready.status()
    pipelines = {g["id"]: g["pipeline"] for g in status["generations"]}
    pipeline = next(p for p in status["pipelines"] if p["id"] in pipelines.values())
    node_id = pipeline["stages"][-1]["node"]
    node = next(n for n in status["nodes"] if n["id"] == node_id)
    os.kill(node["pid"], signal.SIGSTOP)
    try:
        await asyncio.gather(*tasks)
    finally:
        os.kill(node["pid"], signal.SIGCONT)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    after = await ready.until_ready(2)
    members = {s["node"] for p in after["pipelines"] for s in p["stages"] if p["state"] == "ready"}
    formations = {p["formation"] for p in after["pipelines"]}
    assert pipeline["formation"] not in formations
    again = await meshes.undisturbed(client, ready.url(), bodies[:2])
    assert [r.text for r in again] == [r.text for r in expected[:2]]
    assert len(members) == 4
