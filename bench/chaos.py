"""Kills engine processes under load and compares every text with the undisturbed run's.

`python -m bench.chaos --kills 100 --solo 20 --pairs 10` starts a mesh of its own, keeps
streams running, and sends SIGKILL to engine processes: of a random pipeline while both are ready
(single), of the last ready pipeline (solo) soon after a kill on the other one (prelude), and of
both within a second (pair). A kill counts only if a running stream's generation is on its pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench import written
from bench.bounds import rate_bound_95
from bench.moves import History, Move, Strike, pause_s
from services.common import channels
from services.common.roles import Role

STREAMS = 8
LEAST_PROGRESS = 3
VICTIMS_WITHIN_S = 60.0
SOLO_TRIES = 20
KINDS = ("single", "prelude", "solo", "pair")


@dataclass
class Kill:
    """One counted SIGKILL."""

    kind: str
    at_s: float
    node: str
    stage: int
    pipeline: str
    formation: str
    affected: list[meshes.StreamRecord]
    ready_again_s: float | None = None


@dataclass
class Load:
    """Streams that never stop: each worker asks again as soon as it was answered."""

    mesh: meshes.Mesh
    bodies: Sequence[dict[str, Any]]
    expected: Sequence[meshes.StreamRecord]
    live: dict[int, meshes.StreamRecord] = field(default_factory=dict)
    told: dict[str, meshes.StreamRecord] = field(default_factory=dict)
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    stopping: bool = False

    async def worker(self, client: httpx.AsyncClient, index: int) -> None:
        turn = index
        while not self.stopping:
            which = turn % len(self.bodies)
            record = self.live[index] = meshes.StreamRecord()
            url = self.mesh.url(turn % self.mesh.routers)
            await meshes.stream_chat(client, url, self.bodies[which], record)
            self.requests += 1
            self.told[record.generation_id] = record
            turn += 3
            expected = self.expected[which]
            if not record.complete:
                self.failed.append(f"{record.generation_id}: {record.error or 'cut short'}")
            elif (record.text, record.finish_reason, record.usage, record.roles) != (
                expected.text,
                expected.finish_reason,
                expected.usage,
                1,
            ):
                self.different.append(f"{record.generation_id}: request {which}")

    def by_generation(self) -> dict[str, meshes.StreamRecord]:
        """Streams that run now and have begun to speak."""
        return {
            r.generation_id: r
            for r in self.live.values()
            if len(r.arrivals_s) >= LEAST_PROGRESS and not r.done
        }


class Killer:
    """Chooses processes and ends them."""

    def __init__(self, stub: Any, load: Load, randomness: random.Random) -> None:
        self._stub, self._load, self._random = stub, load, randomness
        self.kills: list[Kill] = []
        self.drains = 0
        self._offset_s = time.time() - time.monotonic()

    async def status(self) -> Any:
        return await self._stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)

    async def kill(self, kind: str, count: int = 1) -> bool:
        """Ends a process in each of `count` ready pipelines that carry a running stream. For a
        solo kill just one may be ready: False when the other is there again."""
        victims = await self._found(count, alone=kind == "solo")
        if not victims:
            return False
        for pid, kill in self._random.sample(victims, count):
            os.kill(pid, signal.SIGKILL)
            kill.kind, kill.at_s = kind, time.monotonic()
            self.kills.append(kill)
        return True

    async def _found(self, count: int, *, alone: bool = False) -> list[tuple[int, Kill]]:
        """A process in each pipeline that carries a running stream, once there are `count` of them;
        none where a pipeline is to be `alone` and another is ready. Raises TimeoutError."""
        deadline = time.monotonic() + VICTIMS_WITHIN_S
        while True:
            status = await self.status()
            if alone and len(self._ready(status)) > 1:
                return []
            victims = self._victims(status)
            if len(victims) >= count:
                return victims
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {count} pipelines with a running stream were found")
            await asyncio.sleep(0.02)

    def _ready(self, status: Any) -> dict[str, str]:
        """Formation by pipeline, of those that serve; the status may not know of a kill yet."""
        killed = {kill.formation for kill in self.kills}
        return {
            p.pipeline_id: p.formation_id
            for p in status.pipelines
            if p.state == controller_pb2.PIPELINE_STATE_READY and p.formation_id not in killed
        }

    def _victims(self, status: Any) -> list[tuple[int, Kill]]:
        running = self._load.by_generation()
        carried: dict[str, list[meshes.StreamRecord]] = {}
        for generation in status.generations:
            if generation.generation_id in running:
                record = running[generation.generation_id]
                carried.setdefault(generation.pipeline_id, []).append(record)
        victims = []
        for name, formation in self._ready(status).items():
            if not carried.get(name):
                continue
            nodes = [n for n in status.nodes if n.pipeline_id == name and n.pid]
            node = self._random.choice(sorted(nodes, key=lambda n: n.node_id))
            kill = Kill("", 0.0, node.node_id, node.stage_index, name, formation, carried[name])
            victims.append((node.pid, kill))
        return victims

    async def drain(self) -> None:
        """Interrupts a node of a pipeline that carries a stream, with notice, and waits."""
        _, chosen = self._random.choice(await self._found(1))
        request = controller_pb2.ReportInterruptionRequest(node_id=chosen.node, notice_s=20)
        answer = await self._stub.ReportInterruption(request, timeout=60)
        events = self._stub.WatchEvents(
            controller_pb2.WatchEventsRequest(from_number=answer.event_number), timeout=60
        )
        try:
            async for event in events:
                if event.kind == "node_lost" and event.node_id == chosen.node:
                    break
        finally:
            events.cancel()
        self.drains += 1

    async def returns(self) -> dict[str, Any]:
        """How soon killed pipelines served again, in all and less the pause before the launch of
        the next node; and what the event log has of the slowest of them."""
        events = await self._events()
        again = [
            (kill, kill.ready_again_s) for kill in self.kills if kill.ready_again_s is not None
        ]
        paused = [
            pause_s(events, kill.node, kill.pipeline, kill.at_s, self._offset_s)
            for kill, _ in again
        ]
        slowest, away_s = max(again, key=lambda one: one[1])
        told = []
        for event in events:
            at_s = event.time_unix_s - self._offset_s - slowest.at_s
            if -1.0 <= at_s <= away_s + 1.0 and not event.generation_id:
                parts = (event.kind, event.node_id, event.pipeline_id, str(dict(event.attributes)))
                told.append(f"{at_s:.3f} {' '.join(parts)}")
        return {
            "serves_again_s": _spread([away_s for _, away_s in again]),
            "pause_before_launch_s": _spread(paused),
            "serves_again_less_pause_s": _spread(
                [away_s - pause for (_, away_s), pause in zip(again, paused, strict=True)]
            ),
            "slowest_return": told,
        }

    async def _events(self) -> list[Any]:
        request = controller_pb2.WatchEventsRequest(no_wait=True)
        return [event async for event in self._stub.WatchEvents(request, timeout=60)]

    async def history(self) -> History:
        """What the event log tells of the kills."""
        strikes = [
            Strike(k.kind, k.at_s, k.pipeline, frozenset(r.generation_id for r in k.affected))
            for k in self.kills
        ]
        return History.read(await self._events(), strikes, self._offset_s)

    async def until_ready(self, count: int, timeout_s: float = 90.0) -> None:
        """Waits for ready pipelines and notes when each killed one served again."""
        deadline = time.monotonic() + timeout_s
        while True:
            ready = self._ready(await self.status())
            now = time.monotonic()
            for kill in self.kills:
                if kill.ready_again_s is None and kill.pipeline in ready:
                    kill.ready_again_s = now - kill.at_s
            if len(ready) >= count:
                return
            if now > deadline:
                raise TimeoutError(f"not {count} pipelines ready within {timeout_s} s")
            await asyncio.sleep(0.1)


async def run(
    mesh: meshes.Mesh,
    *,
    kills: int,
    solo: int,
    pairs: int,
    seed: int,
    max_tokens: int,
    drains: int = 0,
    streams: int = STREAMS,
) -> dict[str, Any]:
    """Runs the whole schedule on a mesh that is up; returns the report."""
    randomness = random.Random(seed)
    bodies = meshes.request_bodies(max_tokens)
    timeout = httpx.Timeout(120.0)
    limits = httpx.Limits(max_connections=4 * streams)
    async with httpx.AsyncClient(timeout=timeout, limits=limits) as client:
        expected = await meshes.undisturbed(client, mesh.url(), bodies, at_once=streams)
        load = Load(mesh, bodies, expected)
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            killer = Killer(controller_pb2_grpc.ControllerServiceStub(channel), load, randomness)
            workers = [asyncio.create_task(load.worker(client, i)) for i in range(streams)]
            try:
                await _schedule(killer, randomness, kills, solo, pairs, drains)
            finally:
                load.stopping = True
                await asyncio.gather(*workers)
            report = _report(killer, load, await killer.history())
            return report | await killer.returns()


async def _schedule(
    killer: Killer, randomness: random.Random, kills: int, solo: int, pairs: int, drains: int
) -> None:
    singles = kills - 2 * solo - 2 * pairs
    if singles < 0:
        raise ValueError("kills must be at least twice solo plus pairs: each takes two")
    schedule = ["solo"] * solo + ["pair"] * pairs + ["single"] * singles + ["drain"] * drains
    randomness.shuffle(schedule)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("kills", total=kills)
        for kind in schedule:
            await killer.until_ready(2)
            await asyncio.sleep(randomness.uniform(0.3, 1.5))
            if kind == "drain":
                await killer.drain()
                continue
            if kind == "solo":
                await _solo(killer, randomness)
            else:
                await killer.kill(kind, 2 if kind == "pair" else 1)
            progress.update(task, completed=len(killer.kills))
        await killer.until_ready(2)
        await asyncio.sleep(1.0)


async def _solo(killer: Killer, randomness: random.Random) -> None:
    """A kill while the other pipeline is down, which a kill before it sees to. Raises TimeoutError
    where that one is there again too soon, time after time."""
    for _ in range(SOLO_TRIES):
        await killer.kill("prelude")
        await asyncio.sleep(randomness.uniform(0.5, 1.2))
        if await killer.kill("solo"):
            return
    raise TimeoutError(f"{SOLO_TRIES} times both pipelines served before one could be killed alone")


def _report(killer: Killer, load: Load, history: History) -> dict[str, Any]:
    moves = history.moves({name: record.arrivals_s for name, record in load.told.items()})
    count = len(killer.kills)
    single = [m for m in moves if m.kind == "single"]
    alone = [m for m in single if m.alone]
    planned = [m for m in moves if m.planned and not m.kind]
    return {
        "kills": count,
        "kills_by_kind": {k: sum(kill.kind == k for kill in killer.kills) for k in KINDS},
        "kills_of_heads": sum(k.stage == 0 for k in killer.kills),
        "drains": killer.drains,
        "requests": load.requests,
        "failed": len(load.failed),
        "failures": load.failed[:20],
        "different": len(load.different),
        "differences": load.different[:20],
        "rate_bound_95": rate_bound_95(len(load.failed) + len(load.different), count),
        "moves": len(moves),
        "grants_in_vain": sum(m.grants - 1 for m in moves),
        "grants_to_dead": sum(m.grants_to_dead for m in moves),
        "left_standing_s": _spread(history.left_standing_s()),
        "longest_gap_s": round(max(r.longest_gap_s() for r in load.told.values()), 4),
        "single_kill": _summary(alone),
        "single_kill_while_moving": _summary([m for m in single if not m.alone]),
        "drain": _summary(planned),
    }


def _summary(moves: Sequence[Move]) -> dict[str, Any]:
    return {
        "streams": len(moves),
        "detection_s": _spread([m.detection_s for m in moves]),
        "replay_s": _spread([m.replay_s for m in moves]),
        "gap_s": _spread([m.gap_s for m in moves]),
        "gap_less_replay_s": _spread([m.gap_s - m.replay_s for m in moves]),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "p50": round(statistics.median(values), 4) if values else None,
        "max": round(max(values), 4) if values else None,
    }


async def _main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="shunt-chaos-") as data_dir:
        options = ("--backend", arguments.backend)
        async with meshes.running(Path(data_dir), routers=2, options=options) as mesh:
            report = await run(
                mesh,
                kills=arguments.kills,
                solo=arguments.solo,
                pairs=arguments.pairs,
                seed=arguments.seed,
                max_tokens=arguments.max_tokens,
                drains=arguments.drains,
                streams=arguments.streams,
            )
    written.show(report, arguments.out)
    return 1 if report["failed"] or report["different"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--solo", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--drains", type=int, default=10)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--backend", choices=("native", "vllm"), default="native")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
