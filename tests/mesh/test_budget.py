"""What a mesh may spend: nothing while nobody asks, and less from one moment to the next."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import elastic
from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from tests.mesh import tiny_mesh

TOKENS = 120
PATIENCE_S = 120.0
NODES, PRICE = 4, 0.25
WHOLE, HALF = NODES * PRICE, NODES * PRICE / 2
MARKET = f"""
offers:
  - {{id: spot, instance_type: small, count: {NODES}, price_per_hour: {PRICE}, pool: a, spot: true,
     relative_speed: 1}}
"""
STREAMS = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)]
"""Eight, greedy and seeded."""


class Watch:
    """The controller's own word, asked for again and again."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.costs: list[float] = []

    async def until(self, holds: Callable[[Any], bool]) -> Any:
        """The first status that holds; every cost on the way is kept."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status = await self._stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
                self.costs.append(status.cost_per_hour)
                if holds(status):
                    return status
                await asyncio.sleep(0.05)


@asynccontextmanager
async def market(
    directory: Path, store: Path, *options: str, **settings: str
) -> AsyncIterator[tuple[meshes.Mesh, Watch]]:
    """A mesh of two pipelines of two nodes, which are all that is offered."""
    path = directory / "market.yaml"
    path.write_text(MARKET)
    env = {f"SHUNT_{name.upper()}": value for name, value in settings.items()}
    more = ("--market", str(path), "--node-speeds", "1:1,1:1", *options)
    running = meshes.running(directory / "mesh", env=os.environ | env, options=more, store=store)
    async with running as mesh:
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            yield mesh, Watch(controller_pb2_grpc.ControllerServiceStub(channel))


async def asked_together(client: httpx.AsyncClient, url: str) -> list[meshes.StreamRecord]:
    records = [meshes.StreamRecord() for _ in STREAMS]
    asked = zip(STREAMS, records, strict=True)
    await asyncio.gather(*(meshes.stream_chat(client, url, b, r) for b, r in asked))
    return records


def alike(records: list[meshes.StreamRecord], expected: list[meshes.StreamRecord]) -> None:
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)


@pytest.mark.timeout(240)
async def test_a_mesh_that_nobody_asks_costs_nothing_and_wakes_with_the_first_request(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    patient = {"controller_sleep_s": "10", "router_route_wait_s": f"{PATIENCE_S:g}"}
    async with market(tmp_path, store, "--nodes-min", "0", **patient) as (mesh, watch):
        expected = await asked_together(client, mesh.url())
        awake = await watch.until(lambda status: status.cost_per_hour > 0)
        await watch.until(lambda status: not status.cost_per_hour)

        status = await tiny_mesh.until_status(mesh, lambda s: s["cost_per_hour"] == 0)
        assert status["plan"]["number"] > awake.plan.number
        assert status["plan"]["causes"] == ["quiet"]
        assert [one["pipelines"] for one in status["plan"]["deployments"]] == [[]]
        assert all(node["state"] == "lost" for node in status["nodes"])
        assert all(offer["running"] == 0 for offer in status["offers"])
        assert not [s for s in status["services"] if s["state"] != "ready"], "it waits for requests"

        alike(await asked_together(client, mesh.url()), expected)
        woken = await mesh.status()
        assert woken["plan"]["number"] > status["plan"]["number"]
        assert 0 < woken["cost_per_hour"] <= WHOLE
        kinds = [event.kind for event in await tiny_mesh.events(mesh)]
        assert kinds.count("fell_asleep") == 1
        assert "node_launched" in kinds[kinds.index("fell_asleep") :]


@pytest.mark.timeout(240)
async def test_a_smaller_budget_is_kept_to_and_no_stream_notices(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    budget = ("--budget-per-hour", f"{WHOLE}")
    async with market(tmp_path, store, *budget) as (mesh, watch):
        streams = elastic.Streams(client, mesh.url(), STREAMS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(streams.run())
            await watch.until(lambda _: all(r.arrivals_s for _, r in streams.records[:8]))
            assert watch.costs[-1] == pytest.approx(WHOLE)
            lower = ("plan", "now", "--budget-per-hour", f"{HALF}", "--json")
            moving = tasks.create_task(mesh.shunt(*lower))
            status = await watch.until(
                lambda s: s.cost_per_hour <= HALF and bool(elastic.serving(s))
            )
            moved = len(watch.costs) - 1
            said = json.loads(await moving)
            assert (said["change"], said["number"]) == (True, status.plan.number)
            begun = len(streams.records)
            await watch.until(lambda _: len(streams.records) >= begun + len(STREAMS))
            streams.enough = True
        assert max(watch.costs) <= WHOLE + 1e-9
        assert max(watch.costs[moved:]) <= HALF + 1e-9
        status_json = await mesh.status()
        assert status_json["budget_per_hour"] == HALF
        assert status_json["cost_per_hour"] <= HALF
        why = json.loads(await mesh.shunt("plan", "why", "--json", "--no-what-ifs"))
        assert "over_budget" in why["causes"]
        failed, differ = streams.amiss(await meshes.undisturbed(client, mesh.url(), STREAMS))
        assert (failed, differ) == ([], [])
        kinds = [event.kind for event in await tiny_mesh.events(mesh)]
        assert "node_lost" not in kinds[: kinds.index("budget_changed")]
