"""A mesh changes shape under load: other layers, other numbers of stages, and back again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from bench import mesh as meshes
from bench import moves
from tests.mesh import tiny_mesh
from tests.mesh.lasting import lasting

TOKENS = 300
LASTS_S = 5.0
"""Stages have to be loaded before a hand-over begins, which is to find somebody."""
LAYERS = 30


def eight(tokens: int) -> list[dict[str, Any]]:
    """Requests of either kind."""
    return [body | {"ignore_eos": True} for body in meshes.request_bodies(tokens)]


def plan(model: str, *pipelines: dict[str, tuple[int, int]]) -> str:
    """Pipelines as layer ranges by node, head first."""
    made = [
        {
            "id": f"shape-{number}",
            "stages": [{"node": node, "layers": list(layers)} for node, layers in stages.items()],
        }
        for number, stages in enumerate(pipelines, 1)
    ]
    return json.dumps({"deployments": [{"model": model, "pipelines": made}]})


async def carried_out(mesh: meshes.Mesh, number: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """The status once the plan of this number is what runs."""
    async with asyncio.timeout(timeout_s):
        while True:
            status = await mesh.status()
            assert status["plan"]["number"] >= number
            wanted = {p for d in status["plan"]["deployments"] for p in d["pipelines"]}
            there = {p["id"]: p["state"] for p in status["pipelines"]}
            if set(there) == wanted and set(there.values()) == {"ready"}:
                return status
            await asyncio.sleep(0.2)


async def takes(mesh: meshes.Mesh, text: str, directory: Path) -> None:
    """It is given a plan, and carries it out."""
    file = directory / "plan.json"
    await asyncio.to_thread(file.write_text, text)
    said = await mesh.shunt("plan", "apply", str(file))
    await carried_out(mesh, int(said.split()[1]))


def shape_of(status: dict[str, Any]) -> list[str]:
    """Its pipelines, in an order that does not depend on their names."""
    found = ({s["node"]: tuple(s["layers"]) for s in p["stages"]} for p in status["pipelines"])
    return sorted(map(str, found))


async def test_pipelines_of_other_layers_and_numbers_take_over_under_load(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any, tmp_path: Path
) -> None:
    asked = await lasting(client, ready.url(), TOKENS, LASTS_S, asked=eight, measure=max)
    bodies, expected = asked.bodies, asked.expected
    before = await ready.status()
    model = before["plan"]["deployments"][0]["model"]
    a, b, c, d = (s["node"] for p in before["pipelines"] for s in p["stages"])
    shapes = (
        ({a: (0, 10), b: (10, 20), c: (20, 30)}, {d: (0, LAYERS)}),
        (
            {s["node"]: tuple(s["layers"]) for s in before["pipelines"][0]["stages"]},
            {s["node"]: tuple(s["layers"]) for s in before["pipelines"][1]["stages"]},
        ),
    )
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > 10 for r in records))
    done = False
    try:
        for shape in shapes:
            await takes(ready, plan(model, *shape), tmp_path)
            found = shape_of(await ready.status())
            assert found == sorted(map(str, shape))
        done = True
    finally:
        if not done:
            await takes(ready, plan(model, *shapes[-1]), tmp_path)
    await asyncio.gather(*tasks)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    events = await tiny_mesh.events_of(controller)
    plans = [index for index, event in enumerate(events) if event.kind == "plan_ready"]
    changes = events[plans[-2] :]
    kinds = [event.kind for event in changes]
    assert not {"node_lost", "form_failed"} & set(kinds), kinds
    assert not loads_in_a_switch(changes), kinds
    history = moves.History.read(changes, (), time.time() - time.monotonic())
    moved = history.moves({r.generation_id: r.arrivals_s for r in records})
    assert moved
    assert all(move.planned for move in moved)
    print("longest gap", max(r.longest_gap_s() for r in records))
    print("longest gap less replay", max(move.gap_s - move.replay_s for move in moved))


def loads_in_a_switch(events: Sequence[Any]) -> list[str]:
    """Nodes that loaded between the end of a formation and the beginning of what follows it."""
    switching, loaded = False, []
    for event in events:
        if event.kind == "handover_finished":
            switching = True
        elif event.kind == "pipeline_ready":
            switching = False
        elif event.kind == "stage_loaded" and switching:
            loaded.append(event.node_id)
    return loaded
