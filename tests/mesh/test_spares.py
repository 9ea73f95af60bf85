"""A warm spare takes the place of a killed node, and nobody waits for a load."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import chaos
from bench import mesh as meshes
from tests.mesh import tiny_mesh

TOKENS = 60
STREAMS = 4


async def test_a_killed_pipeline_forms_with_the_spare_and_nothing_is_loaded_for_it(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    options = ("--spares", "1")
    async with meshes.running(tmp_path / "mesh", options=options, store=store) as mesh:
        bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)[:STREAMS]]
        load = chaos.Load(mesh, bodies, await meshes.undisturbed(client, mesh.url(), bodies))
        status = await tiny_mesh.until_status(mesh, _is_warm)
        (spare,) = status["spares"]
        kept = next(node for node in status["nodes"] if node["id"] == spare["node"])
        assert (kept["state"], kept["pipeline"]) == ("spare", None)
        layers = {tuple(stage["layers"]) for p in status["pipelines"] for stage in p["stages"]}
        assert {tuple(one) for one in spare["held"]} == layers, "the tiny model fits as a whole"
        victim, pipeline = _victim(status, spare["held"][-1])
        workers = [asyncio.create_task(load.worker(client, index)) for index in range(STREAMS)]
        try:
            await meshes.until(lambda: len(load.by_generation()) == STREAMS)
            os.kill(victim["pid"], signal.SIGKILL)
            formation = pipeline["formation"]
            status = await tiny_mesh.until_status(mesh, lambda s: _serves(s, pipeline, formation))
        finally:
            load.stopping = True
            await asyncio.gather(*workers)
        events = await tiny_mesh.events(mesh)
    names = [stage["node"] for p in status["pipelines"] for stage in p["stages"]]
    assert spare["node"] in names
    between = _between_loss_and_return(events, victim["id"], pipeline["id"])
    assert {"stage_taken", "stage_kept"} <= set(between)
    assert not {"stage_loaded", "node_registered", "node_launched"} & set(between), between
    assert load.requests >= STREAMS
    assert (load.failed, load.different) == ([], [])


def _is_warm(status: dict[str, Any]) -> bool:
    stages = {tuple(stage["layers"]) for p in status["pipelines"] for stage in p["stages"]}
    return [len(spare["held"]) for spare in status["spares"]] == [len(stages)]


def _victim(status: dict[str, Any], layers: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A node that has the spare's stage, and its pipeline."""
    for pipeline in status["pipelines"]:
        for stage in pipeline["stages"]:
            if stage["layers"] == layers:
                node = next(node for node in status["nodes"] if node["id"] == stage["node"])
                return node, pipeline
    raise AssertionError(f"nobody has the layers {layers}")


def _serves(status: dict[str, Any], before: dict[str, Any], formation: str) -> bool:
    now = next(p for p in status["pipelines"] if p["id"] == before["id"])
    return now["state"] == "ready" and now["formation"] != formation


def _between_loss_and_return(
    events: list[controller_pb2.WatchEventsResponse], node_id: str, pipeline_id: str
) -> list[str]:
    """Kinds of what happened from the node's loss until its pipeline was ready again."""
    kinds = [(event.kind, event.node_id, event.pipeline_id) for event in events]
    lost = next(
        i for i, (kind, node, _) in enumerate(kinds) if (kind, node) == ("node_lost", node_id)
    )
    behind = kinds[lost:]
    ready = next(
        i
        for i, (kind, _, name) in enumerate(behind)
        if (kind, name) == ("pipeline_ready", pipeline_id)
    )
    return [kind for kind, _, _ in behind[:ready]]
