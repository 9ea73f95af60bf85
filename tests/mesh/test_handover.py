"""A node is given notice, and each stream of its pipeline goes on by what its reader waits for
least: from the blocks that were computed, or from its ids."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import kv_mesh
from bench import mesh as meshes
from tests.mesh import tiny_mesh
from tests.mesh.lasting import lasting

TOKENS = 600
LASTS_S = 5.0
"""A notice is told, and a pipeline formed, before a hand-over begins."""
LONG, SHORT = 400, 60
PATIENT = {
    "SHUNT_CONTROLLER_HANDOVER": "auto",
    "SHUNT_CONTROLLER_HANDOVER_AHEAD_S": "30",
    "SHUNT_CONTROLLER_HANDOVER_KEEP_S": "10",
    "SHUNT_ENGINE_KV_KEEP_S": "120",
    "SHUNT_ENGINE_KV_FETCH_S": "60",
    "SHUNT_ENGINE_KV_SILENT_S": "30",
}
"""However slow the machine is, nothing is given up for that."""
WAYS = {"push": "kv", "replay": "replay"}


@pytest.mark.timeout(300)
async def test_streams_go_on_from_their_blocks_as_if_nothing_had_happened(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    env, options = {**os.environ, **PATIENT}, ("--spares", "1")
    contexts = (LONG, LONG, SHORT, SHORT)

    def questions(tokens: int) -> list[dict[str, Any]]:
        bodies = [kv_mesh.body_of(context, seed) for seed, context in enumerate(contexts)]
        return [body | {"max_tokens": tokens} for body in bodies]

    async with meshes.running(tmp_path / "mesh", env=env, options=options, store=store) as mesh:
        asked = await lasting(client, mesh.url(), TOKENS, LASTS_S, questions)
        expected = asked.expected
        await tiny_mesh.until_status(mesh, _is_warm)
        # What the undisturbed ones left in the prefix caches is nothing to these.
        bodies = [body | {"cache_salt": "moved"} for body in asked.bodies]
        records = [meshes.StreamRecord() for _ in bodies]
        tasks = [
            asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
            for body, record in zip(bodies, records, strict=True)
        ]
        await meshes.until(lambda: all(len(record.arrivals_s) > 10 for record in records))
        status = await mesh.status()
        moving = {g["id"]: g["pipeline"] for g in status["generations"]}
        left = next(p for p in status["pipelines"] if p["id"] == moving[records[0].generation_id])
        own = {record.generation_id for record in records}
        names = {name for name in own if moving[name] == left["id"]}
        await mesh.shunt("interrupt", left["stages"][-1]["node"], "--notice", "100")
        moved_by = await tiny_mesh.until_status(mesh, lambda status: _all_moved(status, names))
        await asyncio.gather(*tasks)
        events = await tiny_mesh.events(mesh)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    chosen = {e.generation_id: e.attributes for e in events if e.kind == "handover_chosen"}
    choices = {name: chosen[name]["choice"] for name in names}
    ways = {g["id"]: g["moved_by"] for g in moved_by["generations"] if g["id"] in names}
    assert ways == {name: WAYS[choice] for name, choice in choices.items()}
    long = {
        r.generation_id for r, context in zip(records, contexts, strict=True) if context is LONG
    }
    assert {choices[name] for name in names & long} == {"push"}
    sizes = {name: int(chosen[name]["bytes"]) for name in names}
    assert all((sizes[name] > 0) is (choices[name] == "push") for name in names), sizes
    (ahead,) = [event for event in events if event.kind == "blocks_went_ahead"]
    assert int(ahead.attributes["blocks"]) >= LONG // 2 // 16, "most of a context goes ahead"


def _is_warm(status: dict[str, Any]) -> bool:
    stages = {tuple(stage["layers"]) for p in status["pipelines"] for stage in p["stages"]}
    return [len(spare["held"]) for spare in status["spares"]] == [len(stages)]


def _all_moved(status: dict[str, Any], names: set[str]) -> bool:
    """All of them run elsewhere, by whatever way they came there."""
    ways = {g["id"]: (g["epoch"], g["moved_by"]) for g in status["generations"]}
    return all(epoch > 1 and way for epoch, way in (ways.get(n, (1, None)) for n in names))
