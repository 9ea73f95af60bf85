"""A mesh that shrinks and grows under eight streams: how soon the other plan serves, and the gaps.

`python -m bench.elastic` starts six nodes. Two of them are taken with 30 s of notice and no
replacement to be had; two are offered again; two are killed. It prints JSON, with the speeds that
were declared of the nodes and those that they achieved, and ends with 1 when a stream failed or
differs from the undisturbed one, a plan came too late, or a planned move left a gap of over 0.3 s
beside its replay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench import moves
from bench.speeds import node_speeds
from services.common import channels
from services.common.roles import Role

TOKENS = 150
NODES, TAKEN = 6, 2
NOTICE_S = 30.0
BETTER_WITHIN_S = 20.0
PLANNED_GAP_S = 0.3
"""Of a planned move, what replays its tokens not counted."""
OPTIONS = ("--node-speeds", "1:1,1:1,1:1")
SETTINGS = {
    "SHUNT_CONTROLLER_REPLAN_STEADY_S": "2",
    "SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S": "3",
}
NOTICED_S, OFFERED_S, KILLED_S = 6.0, 42.0, 68.0
"""Since the first pipeline takes requests: those that had notice are gone when others are
offered."""
PHASES = (
    ("noticed", "interruption_noticed", NODES - TAKEN),
    ("offered", "offers_changed", NODES),
    ("killed", "node_lost", NODES - TAKEN),
)
"""What begins each, and how many nodes serve in the plan that ends it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One change of shape."""

    name: str
    plan: int
    """Number of the plan that serves in the end."""
    serves_s: float
    """From what happened to every pipeline of that plan being ready."""
    began_s: float
    """On this process' clock."""


@dataclass(slots=True)
class Streams:
    """Eight requests, each asked again and again until there is enough."""

    client: httpx.AsyncClient
    url: str
    bodies: list[dict[str, Any]]
    records: list[tuple[int, meshes.StreamRecord]] = field(default_factory=list)
    enough: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self.bodies)):
                tasks.create_task(self._worker(index))

    async def _worker(self, index: int) -> None:
        while not self.enough:
            record = meshes.StreamRecord()
            self.records.append((index, record))
            await meshes.stream_chat(self.client, self.url, self.bodies[index], record)

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """Of any stream between two times."""
        gaps = (record.longest_gap_s(start_s, end_s) for _, record in self.records)
        return max(gaps, default=0.0)

    def amiss(self, expected: Sequence[meshes.StreamRecord]) -> tuple[list[str], list[str]]:
        """What failed, and what differs from the undisturbed answer."""
        failed = [str(record.error) for _, record in self.records if not record.complete]
        differ = [
            record.generation_id
            for index, record in self.records
            if record.complete
            and (record.text, record.usage) != (expected[index].text, expected[index].usage)
        ]
        return failed, differ


def serving(status: Any) -> set[str]:
    """Nodes of the plan's pipelines, when all of them are ready and no other one is there."""
    planned = {name for one in status.plan.deployments for name in one.pipeline_ids}
    ready = controller_pb2.PIPELINE_STATE_READY
    if {p.pipeline_id for p in status.pipelines} != planned:
        return set()
    if any(pipeline.state != ready for pipeline in status.pipelines):
        return set()
    return {stage.node_id for pipeline in status.pipelines for stage in pipeline.stages}


class Watch:
    """The controller, looked at while shapes change."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._seen = 0

    async def phase(self, name: str, kind: str, nodes: int, within_s: float) -> Phase:
        """From the next event of this kind to a plan of so many nodes; raises TimeoutError."""
        async with asyncio.timeout(within_s):
            began_unix_s = await self._next(kind)
            began_s = time.monotonic() - (time.time() - began_unix_s)
            while True:
                status = await self._stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
                draining = controller_pb2.NODE_STATE_DRAINING
                going = {node.node_id for node in status.nodes if node.state == draining}
                found = serving(status)
                if len(found) == nodes and not found & going:
                    break
                await asyncio.sleep(0.1)
        return Phase(name, status.plan.number, time.monotonic() - began_s, began_s)

    async def history(self) -> moves.History:
        """Every hand-over so far, on this process' clock."""
        request = controller_pb2.WatchEventsRequest(no_wait=True)
        events = [event async for event in self._stub.WatchEvents(request, timeout=60)]
        return moves.History.read(events, (), time.time() - time.monotonic())

    async def _next(self, kind: str) -> float:
        """When it happened."""
        request = controller_pb2.WatchEventsRequest(from_number=self._seen + 1)
        call = self._stub.WatchEvents(request, timeout=600)
        try:
            async for event in call:
                self._seen = event.number
                if event.kind == kind:
                    return float(event.time_unix_s)
        finally:
            call.cancel()
        raise RuntimeError(f"no event {kind}")


def write_market(directory: Path, slowness: float = 1.0) -> Path:
    """One whose times are so many times longer."""
    noticed, offered, killed = (slowness * at_s for at_s in (NOTICED_S, OFFERED_S, KILLED_S))
    market = directory / "market.yaml"
    market.write_text(f"""
offers:
  - {{id: spot, instance_type: small, count: {NODES}, price_per_hour: 0.5, pool: a, spot: true,
     relative_speed: 1}}
events:
  - {{at_s: {noticed:g}, offer: spot, count: {NODES - TAKEN}}}
  - {{at_s: {noticed:g}, offer: spot, take: {TAKEN}, notice_s: {slowness * NOTICE_S:g}}}
  - {{at_s: {offered:g}, offer: spot, count: {NODES}}}
  - {{at_s: {killed:g}, offer: spot, count: {NODES - TAKEN}}}
  - {{at_s: {killed:g}, offer: spot, take: {TAKEN}, notice_s: 0}}
""")
    return market


async def measured(
    directory: Path,
    *,
    within_s: float,
    slowness: float = 1.0,
    said: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Figures of one mesh; each phase has so long. A market for a machine that is slower than the
    one that its times are for takes as much longer."""
    market = write_market(directory, slowness)
    bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)]
    async with (
        httpx.AsyncClient(timeout=120.0) as client,
        meshes.running(
            directory / "mesh",
            env=os.environ | SETTINGS,
            options=("--market", str(market), *OPTIONS),
            pipelines=3,
        ) as mesh,
    ):
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        streams = Streams(client, mesh.url(), bodies)
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            watch = Watch(controller_pb2_grpc.ControllerServiceStub(channel))
            phases = []
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(streams.run())
                for name, kind, nodes in PHASES:
                    phases.append(await watch.phase(name, kind, nodes, within_s))
                    said(f"{name}: plan {phases[-1].plan} after {phases[-1].serves_s:.1f} s")
                streams.enough = True
            history = await watch.history()
            speeds = await node_speeds(channel)
        expected = await meshes.undisturbed(client, mesh.url(), bodies)
    ends = [*(phase.began_s for phase in phases[1:]), math.inf]
    failed, differ = streams.amiss(expected)
    arrivals_s = {record.generation_id: record.arrivals_s for _, record in streams.records}
    planned = [move for move in history.moves(arrivals_s) if move.planned]
    return {
        "streams": len(streams.records),
        "failed": failed,
        "differ": differ,
        "planned_moves": len(planned),
        "planned_gap_less_replay_s": max((m.gap_s - m.replay_s for m in planned), default=0.0),
        "speeds": [asdict(speed) for speed in speeds],
        "phases": [
            asdict(phase) | {"longest_gap_s": streams.longest_gap_s(phase.began_s, ends_s)}
            for phase, ends_s in zip(phases, ends, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(measured(Path(directory), within_s=120.0))
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n")
    serves_s = {phase["name"]: phase["serves_s"] for phase in figures["phases"]}
    late = serves_s["noticed"] > NOTICE_S or serves_s["offered"] > BETTER_WITHIN_S
    gap = figures["planned_gap_less_replay_s"] > PLANNED_GAP_S
    if figures["failed"] or figures["differ"] or late or gap:
        sys.exit("goal missed")


if __name__ == "__main__":
    main()
