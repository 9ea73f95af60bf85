"""A mesh with a journal in PostgreSQL outlives the controller that leads it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mesh as meshes
from tests.postgres import Cluster

MARKET = """
offers: [{id: spot, count: 4, price_per_hour: 0.3, spot: true, relative_speed: 1}]
events: [{at_s: 0, offer: spot, price_per_hour: 0.2}, {at_s: 86400, offer: spot, count: 0}]
"""
QUESTION = meshes.request_bodies(160)[1] | {"ignore_eos": True}


def controllers(status: dict[str, Any]) -> dict[str, str]:
    """State by name of those that lead or may do so."""
    found = {service["name"]: service["state"] for service in status["services"]}
    return {name: found[name] for name in ("controller", "standby-1")}


def played(journal: str) -> list[tuple[Any, ...]]:
    """What the journal knows of the market."""
    import psycopg  # here, for the environment of vLLM's tests has none

    with psycopg.connect(journal) as connection:
        return connection.execute("SELECT value FROM shunt_saved WHERE key = 'market'").fetchall()


async def until_controllers_are(mesh: meshes.Mesh, **states: str) -> dict[str, Any]:
    wanted = {name.replace("_", "-"): state for name, state in states.items()}
    async with asyncio.timeout(60):
        while True:
            status = await mesh.status()
            if controllers(status) == wanted:
                return status
            await asyncio.sleep(0.2)


@pytest.mark.timeout(180)
async def test_a_leader_and_an_engine_that_are_killed_together_cost_a_stream_no_word(
    cluster: Cluster, tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    journal, market = cluster.new_journal(), tmp_path / "market.yaml"
    market.write_text(MARKET)
    options = ("--journal", journal, "--standbys", "1", "--node-speeds", "1,1")
    options = (*options, "--market", str(market))
    async with meshes.running(tmp_path / "mesh", store=store, options=options) as mesh:
        status = await until_controllers_are(mesh, controller="ready", standby_1="standby")
        expected = await meshes.stream_chat(client, mesh.url(), QUESTION, meshes.StreamRecord())
        record = meshes.StreamRecord()
        reading = asyncio.create_task(meshes.stream_chat(client, mesh.url(), QUESTION, record))
        await meshes.until(lambda: len(record.arrivals_s) > 10)
        carried = next(
            one["pipeline"]
            for one in (await mesh.status())["generations"]
            if one["id"] == record.generation_id
        )
        stages = {pipeline["id"]: pipeline["stages"] for pipeline in status["pipelines"]}
        head = stages[carried][0]["node"]
        pids = {node["id"]: node["pid"] for node in status["nodes"]}
        leader = next(s["pid"] for s in status["services"] if s["name"] == "controller")
        await meshes.until(lambda: '"done": 1' in str(played(journal)))
        before = played(journal)
        for pid in (leader, pids[head]):
            os.kill(pid, signal.SIGKILL)
        await reading
        assert record.complete, record.error
        assert (record.text, record.usage) == (expected.text, expected.usage)
        # The one that was killed is started again, and follows the other one.
        last = await until_controllers_are(mesh, controller="standby", standby_1="ready")
        assert last["plan"] == status["plan"], "the mesh is the same"
        await mesh.until_ready(2)
        assert played(journal) == before, "the market goes on where it was"
        assert [offer["price_per_hour"] for offer in last["offers"]] == [0.2]
        kinds = (await mesh.shunt("events", "--kind", "node_lost", "--json")).splitlines()
        assert len(kinds) == 1, "commands find who leads"
