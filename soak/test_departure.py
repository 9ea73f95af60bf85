"""A market takes one of two machines and nobody follows it: its streams end there, or go on at the
other one, each by what its reader waits for least."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from bench import kv_mesh
from bench import mesh as meshes
from soak.test_node import carriers, controller_of, events_of, machine

NOTICE_S = 20.0
CONTEXTS = (600, 300, 60, 20)
TOKENS = (1200, 1200, 600, 40)
SETTINGS = {"PROVIDER": "external", "EXPECTED_NODES": "2", "REPLAN": "false"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("handover", ["auto", "replay"])
async def test_streams_leave_a_machine_that_a_market_takes_in_their_time(
    handover: str, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    settings = SETTINGS | {"HANDOVER": handover}
    environment = os.environ | {f"SHUNT_CONTROLLER_{k}": value for k, value in settings.items()}
    async with AsyncExitStack() as stack:
        context = meshes.running(tmp_path, env=environment, options=("--node-speeds", "1,1"))
        up = asyncio.create_task(stack.enter_async_context(context))
        controller = await controller_of(tmp_path)
        machines = {}
        for name in ("a", "b"):
            one = await stack.enter_async_context(machine(name, controller, tmp_path / "store"))
            machines[one.name] = one
        mesh = await up
        bodies = [
            kv_mesh.body_of(context, seed) | {"max_tokens": tokens}
            for seed, (context, tokens) in enumerate(zip(CONTEXTS, TOKENS, strict=True))
        ]
        expected = await meshes.undisturbed(client, mesh.url(), bodies)
        bodies = [body | {"cache_salt": "moved"} for body in bodies]
        records = [meshes.StreamRecord() for _ in bodies]
        tasks = [
            asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
            for body, record in zip(bodies, records, strict=True)
        ]
        await meshes.until(lambda: all(len(record.arrivals_s) > 5 for record in records))
        status = await mesh.status()
        runs_at = {g["id"]: g["pipeline"] for g in status["generations"]}
        nodes = {p["id"]: p["stages"][0]["node"] for p in status["pipelines"]}
        pipeline = runs_at[records[0].generation_id]
        taken = machines[nodes[pipeline]]
        leave = {name for name, at in runs_at.items() if at == pipeline}
        assert taken.name in await carriers(mesh)
        taken.cloud.mark(NOTICE_S)
        await asyncio.gather(*tasks)
        for record, wanted in zip(records, expected, strict=True):
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
        events = await events_of(mesh)
        assert await asyncio.wait_for(taken.process.wait(), NOTICE_S + 60) == 0
    kinds = [event["kind"] for event in events]
    assert "departure_begun" in kinds, kinds
    chosen = [e for e in events if e["kind"] == "handover_chosen"]
    own = {record.generation_id for record in records}
    assert {e["generation"] for e in chosen} >= leave & own
    for event in chosen:
        print(event["generation"][:8], event["attributes"])
    print(handover, "longest gaps", [round(record.longest_gap_s(), 3) for record in records])
