"""Restarts everything, one after another, under streams, and compares every text.

`python -m bench.rolling` starts a mesh of its own with two routers and keeps twenty streams
running: clients that resume go on at the other router behind the last event they were given, and
the answers of some last longer than any drain; plain ones know nothing of that, ask a router that
says it is ready, and read until the end. SIGTERM
goes to both routers, the controller, placement, the tensor store and every engine in turn, each
when the one before is back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench.bounds import rate_bound_95
from services.common import channels
from services.common.roles import Role
from tests.mesh.lasting import lasting

LONG, SHORT, PLAIN = 4, 12, 4
"""How many clients of each kind."""
LONG_TOKENS, SHORT_TOKENS, PLAIN_TOKENS = 480, 60, 16
RETRY_S = 0.2
BACK_S = 90.0
SERVICES = ("router-0", "router-1", "controller", "placement", "tensorstore")
PAUSE_S, DRAIN_S = 1, 6
ENVIRONMENT = {
    "SHUNT_ROUTER_LEAVE_PAUSE_S": str(PAUSE_S),
    "SHUNT_ROUTER_DRAIN_S": str(DRAIN_S),
}
"""What the routers of a mesh for this are started with: time for a plain answer, and not for a long
one."""
LONG_S = 2.0 * (PAUSE_S + DRAIN_S)
"""What a long answer lasts at least: of some that are under way one is cut, however quick the
machine is."""


@dataclass(frozen=True)
class Questions:
    """What is asked, and what was answered with nothing in the way."""

    bodies: Sequence[dict[str, Any]]
    expected: Sequence[meshes.StreamRecord]


async def _asked(
    client: httpx.AsyncClient, mesh: meshes.Mesh, tokens: int, count: int
) -> Questions:
    bodies = meshes.request_bodies(tokens)[:count]
    return Questions(bodies, await meshes.undisturbed(client, mesh.url(), bodies))


@dataclass
class Load:
    """Clients that never stop; each compares every answer with the undisturbed one."""

    mesh: meshes.Mesh
    answers: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    failed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    stopping: bool = False

    async def resuming(self, client: httpx.AsyncClient, questions: Questions, index: int) -> None:
        """Comes back at the next router until it has everything, or nothing more came for long."""
        bodies, turn = questions.bodies, index
        while not self.stopping:
            which, record, router = turn % len(bodies), meshes.StreamRecord(), turn
            deadline = time.monotonic() + BACK_S
            while not record.complete and time.monotonic() < deadline:
                url, known = self.mesh.url(router % self.mesh.routers), len(record.arrivals_s)
                if record.generation_id:
                    self.resumes += 1
                    await meshes.resume_stream(client, url, record)
                else:
                    record.error = None
                    await meshes.stream_chat(client, url, bodies[which], record)
                if len(record.arrivals_s) > known:
                    deadline = time.monotonic() + BACK_S
                if not record.complete:
                    router += 1
                    await asyncio.sleep(RETRY_S)
            self._judge("resuming", record, questions.expected[which])
            turn += 3

    async def plain(self, client: httpx.AsyncClient, questions: Questions, index: int) -> None:
        """Asks a router that says it is ready, as a balancer would, and reads."""
        bodies, turn = questions.bodies, index
        while not self.stopping:
            url = await self._ready_router(client, turn)
            which, record = turn % len(bodies), meshes.StreamRecord()
            await meshes.stream_chat(client, url, bodies[which], record)
            self._judge("plain", record, questions.expected[which])
            turn += 1

    async def _ready_router(self, client: httpx.AsyncClient, turn: int) -> str:
        while True:
            turn += 1
            url = self.mesh.url(turn % self.mesh.routers)
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return url
            except httpx.TransportError:
                await asyncio.sleep(RETRY_S)

    def _judge(self, kind: str, record: meshes.StreamRecord, expected: meshes.StreamRecord) -> None:
        self.answers[kind] += 1
        if not record.complete:
            self.failed.append(f"{kind} {record.generation_id}: {record.error or 'cut short'}")
        elif (record.text, record.finish_reason, record.usage) != (
            expected.text,
            expected.finish_reason,
            expected.usage,
        ):
            self.different.append(f"{kind} {record.generation_id}")


async def _restart_service(mesh: meshes.Mesh, name: str) -> None:
    def of(status: dict[str, Any]) -> dict[str, Any]:
        return next(s for s in status["services"] if s["name"] == name)

    before = of(await mesh.status())
    os.kill(before["pid"], signal.SIGTERM)
    deadline = time.monotonic() + BACK_S
    while time.monotonic() < deadline:
        now = of(await mesh.status())
        if now["state"] == "ready" and now["pid"] != before["pid"]:
            return
        await asyncio.sleep(RETRY_S)
    raise TimeoutError(f"{name} is not back after {BACK_S} s")


async def _restart_engine(mesh: meshes.Mesh, node: dict[str, Any]) -> None:
    os.kill(node["pid"], signal.SIGTERM)
    deadline = time.monotonic() + BACK_S
    while time.monotonic() < deadline:
        status = await mesh.until_ready(2, timeout_s=BACK_S)
        if all(n["pid"] != node["pid"] for n in status["nodes"]):
            return
        await asyncio.sleep(RETRY_S)
    raise TimeoutError(f"{node['id']} has not ended after {BACK_S} s")


async def _events(mesh: meshes.Mesh) -> list[controller_pb2.WatchEventsResponse]:
    services = (await mesh.status())["services"]
    address = next(s["grpc"] for s in services if s["name"] == "controller")
    async with channels.open_channel(address, Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        request = controller_pb2.WatchEventsRequest(no_wait=True)
        return [event async for event in stub.WatchEvents(request, timeout=60)]


async def run(mesh: meshes.Mesh) -> dict[str, Any]:
    """The report, as JSON; `mesh` has two routers that were started with ENVIRONMENT."""
    limits = httpx.Limits(max_keepalive_connections=0)  # a connection of a dead router is no use
    async with httpx.AsyncClient(timeout=120.0, limits=limits) as client:
        lasts = await lasting(client, mesh.url(), LONG_TOKENS, LONG_S)
        long = Questions(lasts.bodies, lasts.expected)
        short = await _asked(client, mesh, SHORT_TOKENS, 8)
        brief = await _asked(client, mesh, PLAIN_TOKENS, 8)
        known = len(await _events(mesh))
        load = Load(mesh)
        clients = [load.resuming(client, long, index) for index in range(LONG)]
        clients += [load.resuming(client, short, index) for index in range(SHORT)]
        clients += [load.plain(client, brief, index) for index in range(PLAIN)]
        tasks = [asyncio.create_task(work) for work in clients]
        took_s: dict[str, float] = {}
        try:
            for name in SERVICES:
                began_s = time.monotonic()
                await _restart_service(mesh, name)
                took_s[name] = time.monotonic() - began_s
            nodes = [n for n in (await mesh.until_ready(2))["nodes"] if n["pipeline"] and n["pid"]]
            for node in nodes:
                began_s = time.monotonic()
                await _restart_engine(mesh, node)
                took_s[node["id"]] = time.monotonic() - began_s
        finally:
            load.stopping = True
            await asyncio.gather(*tasks)
        kinds = Counter(event.kind for event in (await _events(mesh))[known:])
    answers = sum(load.answers.values())
    return {
        "answers": dict(load.answers),
        "resumes": load.resumes,
        "failures": load.failed,
        "differences": load.different,
        "failure_rate_bound_95": rate_bound_95(len(load.failed) + len(load.different), answers),
        "restarted_engines": len(nodes),
        "handovers": kinds["handover_finished"],
        "pipelines_lost": kinds["pipeline_lost"],
        "took_s": {name: round(value, 1) for name, value in took_s.items()},
    }


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, **ENVIRONMENT}
        async with meshes.running(Path(directory), routers=2, env=environment) as mesh:
            report = await run(mesh)
    print(json.dumps(report, indent=1))
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(report, indent=1))
    return 1 if report["failures"] or report["differences"] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
