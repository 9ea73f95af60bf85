"""How soon a killed pipeline serves again, with one warm spare and without.

`python -m bench.spares --kills 20` starts one mesh without a spare and one with, keeps eight
streams running in each, and sends SIGKILL to random nodes of random pipelines, one at a time, each
once everything is there again. Times are from the kill to the event that says that its pipeline is
ready; kills of the stage that the spare held are told apart from those of another one.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import chaos, written
from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

WARM_S = 60.0
"""A spare that was taken has its follower, loaded, within this."""


@dataclass(frozen=True, slots=True)
class Return:
    """A kill, and how long it took until its pipeline served again."""

    held: bool
    """The spare held the stage that was killed."""
    took_s: float
    steps_s: dict[str, float]
    """When each kind of event about the pipeline, or a node, first came behind the kill."""


async def until_warm(stub: Any, count: int) -> set[tuple[int, int]]:
    """The layers that spares hold, once as many as are wanted hold all that they have room for."""
    async with asyncio.timeout(WARM_S):
        while True:
            status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
            stages = {
                (stage.layers.start, stage.layers.end)
                for pipeline in status.pipelines
                for stage in pipeline.stages
            }
            warm = [s for s in status.spares if len(s.held) + len(s.lacks) >= len(stages)]
            if len(warm) >= count:
                return {(layers.start, layers.end) for one in warm for layers in one.held}
            await asyncio.sleep(0.1)


async def _layers(stub: Any, kill: chaos.Kill) -> tuple[int, int]:
    """Of the stage that is to be killed."""
    status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    stages = next(p.stages for p in status.pipelines if p.pipeline_id == kill.pipeline)
    layers = stages[kill.stage].layers
    return layers.start, layers.end


async def _returned(stub: Any, kill: chaos.Kill, held: bool, killed_unix_s: float) -> Return:
    request = controller_pb2.WatchEventsRequest()  # an event may come behind the status it tells of
    steps_s: dict[str, float] = {}
    events = stub.WatchEvents(request, timeout=60)
    try:
        async for event in events:
            at_s = event.time_unix_s - killed_unix_s
            if at_s < 0 or event.generation_id or event.pipeline_id not in ("", kill.pipeline):
                continue
            steps_s.setdefault(event.kind, round(at_s, 3))
            if event.kind == "pipeline_ready":
                break
    finally:
        events.cancel()
    return Return(held, steps_s["pipeline_ready"], steps_s)


async def measure(
    mesh: meshes.Mesh, *, kills: int, spares: int, seed: int, max_tokens: int
) -> dict[str, Any]:
    """The report of one mesh that is up."""
    bodies = meshes.request_bodies(max_tokens)
    found: list[Return] = []
    async with httpx.AsyncClient(timeout=120.0) as client:
        expected = await meshes.undisturbed(client, mesh.url(), bodies)
        load = chaos.Load(mesh, bodies, expected)
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            stub: Any = controller_pb2_grpc.ControllerServiceStub(channel)
            randomness = random.Random(seed)
            killer = chaos.Killer(stub, load, randomness)
            workers = [asyncio.create_task(load.worker(client, i)) for i in range(chaos.STREAMS)]
            try:
                for _ in range(kills):
                    await killer.until_ready(2)
                    held = await until_warm(stub, spares)
                    await asyncio.sleep(randomness.uniform(0.3, 1.5))
                    await killer.kill("single")
                    killed_unix_s = time.time() - (time.monotonic() - killer.kills[-1].at_s)
                    kill = killer.kills[-1]
                    layers = await _layers(stub, kill)
                    await killer.until_ready(2)
                    found.append(await _returned(stub, kill, layers in held, killed_unix_s))
            finally:
                load.stopping = True
                await asyncio.gather(*workers)
    return {
        "kills": len(found),
        "requests": load.requests,
        "failed": len(load.failed),
        "different": len(load.different),
        "serves_again_s": _spread(found),
        "of_the_stage_that_was_held_s": _spread([one for one in found if one.held]),
        "of_another_stage_s": _spread([one for one in found if not one.held]),
        "steps_s": _steps(found),
        "slowest": max(found, key=lambda one: one.took_s).steps_s,
    }


def _steps(found: Sequence[Return]) -> dict[str, float]:
    """When what stands in the way of a return has happened, in the median of those that had it."""
    times: dict[str, list[float]] = {}
    for one in found:
        for kind, at_s in one.steps_s.items():
            times.setdefault(kind, []).append(at_s)
    return {kind: round(statistics.median(at), 3) for kind, at in times.items()}


def _spread(found: Sequence[Return]) -> dict[str, float | int | None]:
    took = [one.took_s for one in found]
    return {
        "count": len(took),
        "p50": round(statistics.median(took), 3) if took else None,
        "max": round(max(took), 3) if took else None,
    }


async def run(kills: int, seed: int, max_tokens: int) -> dict[str, Any]:
    """Both meshes, one behind the other."""
    report: dict[str, Any] = {}
    for name, spares in (("without", 0), ("with_one", 1)):
        with tempfile.TemporaryDirectory(prefix="shunt-spares-") as data_dir:
            options = ("--spares", str(spares))
            async with meshes.running(Path(data_dir), options=options) as mesh:
                report[name] = await measure(
                    mesh, kills=kills, spares=spares, seed=seed, max_tokens=max_tokens
                )
    without, one = (report[n]["serves_again_s"]["p50"] for n in ("without", "with_one"))
    return report | {"ratio": round(one / without, 3)}


async def _main(arguments: argparse.Namespace) -> int:
    report = await run(arguments.kills, arguments.seed, arguments.max_tokens)
    written.show(report, arguments.out)
    meshes_ = (report["without"], report["with_one"])
    return 1 if any(one["failed"] or one["different"] for one in meshes_) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
