"""Kills engines under answers of every kind and compares all that a reader got.

`python -m bench.kinds --kills 50` starts meshes of its own and prints JSON: one of SmolLM2, one of
a tiny model for all kinds, twenty schemas, responses and batches, and one for each form of calls
and for thoughts (`bench.kinds_models`). Readers ask for one answer after another, of all kinds; a
random engine of a pipeline that carries some of them is killed, and the kill counts where one at
least of what it struck went on in a later epoch. What came of each answer must be, field by field,
what the same request brought with nothing in its way: texts, calls and their arguments, thoughts,
log probabilities to the last digit, events of a response, usage; and what was to follow a schema
follows it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from shuntserve.controller.v1 import controller_pb2_grpc

from bench import kinds_asked, written
from bench import mesh as meshes
from bench.bounds import rate_bound_95
from bench.kinds_answers import Answer, ask
from bench.kinds_asked import Kind
from bench.kinds_load import Grants, Kills, Load
from services.common import channels
from services.common.roles import Role

WRONG = ("failures", "differences", "invalid")
REAL = "smollm2"
"""The mesh of a model that says something."""
READERS = 12
"""At once, as many as keep a mesh of small engines busy and let others start beside them."""
ENVIRONMENT = {"SHUNT_CONTROLLER_STABLE_S": "1"}
"""Whoever is killed here was well: the place of an engine that has served for a second waits for
no longer than that of one which was taken away."""


async def run(
    mesh: meshes.Mesh,
    kinds: Mapping[str, Kind],
    *,
    kills: int,
    seed: int,
    model: str = meshes.MODEL,
    pipelines: int = 2,
    readers: int = READERS,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """The report; the mesh has so many pipelines and is left with them. After so many seconds
    nothing is killed any more. Raises what ends the stream of the controller's events, and
    RuntimeError."""
    began_s = time.monotonic()
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=4 * max(readers, len(kinds)))
        client = httpx.AsyncClient(timeout=300.0, limits=limits)
        await stack.enter_async_context(client)
        expected = await undisturbed(client, mesh, model, kinds)
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        channel = await stack.enter_async_context(channels.open_channel(address, Role.CONTROLLER))
        grants, load = Grants(), Load(client, mesh, model, kinds)
        killed = Kills(mesh, load, grants, random.Random(seed))
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        following = asyncio.create_task(grants.follow(stub))
        reading = [asyncio.create_task(load.read(reader)) for reader in range(readers)]
        bar = stack.enter_context(Progress(disable=not sys.stderr.isatty()))
        task = bar.add_task("kills", total=kills)
        try:
            while killed.in_mid_answer < kills and time.monotonic() - began_s < seconds:
                await mesh.until_ready(min(2, pipelines))
                if following.done():
                    following.result()
                    raise RuntimeError("the controller's events ended: no kill would count")
                await killed.kill()
                bar.update(task, completed=killed.in_mid_answer)
        finally:
            load.stopping = True
            await asyncio.gather(*reading)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await mesh.until_ready(pipelines)
    return {
        **killed.report(),
        **judged(load.answers, expected, kinds),
        "seconds": round(time.monotonic() - began_s, 1),
    }


def judged(
    answers: Sequence[tuple[str, Answer]],
    expected: Mapping[str, Answer],
    kinds: Mapping[str, Kind],
) -> dict[str, Any]:
    """Which failed, which are not what the same request brought with nothing in its way, and which
    are not what was asked for."""
    wrong: dict[str, list[str]] = {name: [] for name in WRONG}
    for name, answer in answers:
        told = f"{name}: {sorted(answer.generation_ids)}"
        if answer.error or not answer.done:
            wrong["failures"].append(f"{told}: {answer.error or 'cut short'}")
            continue
        if answer.what != expected[name].what or not answer.one_id_a_call:
            wrong["differences"].append(told)
        if not kinds[name].holds(answer):
            wrong["invalid"].append(told)
    bad = {one for found in wrong.values() for one in found}
    return {
        "requests": len(answers),
        **wrong,
        "failure_rate_bound_95": rate_bound_95(len(bad), len(answers)),
    }


async def undisturbed(
    client: httpx.AsyncClient, mesh: meshes.Mesh, model: str, kinds: Mapping[str, Kind]
) -> dict[str, Answer]:
    """What each kind brings with nothing in its way. Raises RuntimeError where one is not what was
    asked for."""
    answers = {name: Answer() for name in kinds}
    asked = (ask(client, mesh.url(), model, kinds[name], answers[name]) for name in kinds)
    await asyncio.gather(*asked)
    lacking = {
        name: answer.error or [choice.finish_reason for choice in answer.choices.values()]
        for name, answer in answers.items()
        if answer.error or not answer.done or not kinds[name].holds(answer)
    }
    if lacking:
        raise RuntimeError(f"with nothing in its way: {lacking}")
    return answers


async def _of_sort(sort: str, directory: Path, kills: int, seed: int, seconds: float) -> Any:
    """The report of one mesh."""
    env = {**os.environ, **ENVIRONMENT}
    if sort == REAL:
        async with meshes.running(directory / "mesh", routers=2, env=env) as mesh:
            kinds = kinds_asked.plain(1)
            return await run(mesh, kinds, kills=kills, seed=seed, seconds=seconds)
    from bench.kinds_models import NAME, OPTIONS, PIPELINES, SORTS

    store = await SORTS[sort].store(directory)
    async with meshes.running(
        directory / "mesh",
        routers=2,
        env=env,
        options=OPTIONS,
        pipelines=PIPELINES,
        store=store,
    ) as mesh:
        return await run(
            mesh,
            SORTS[sort].kinds,
            kills=kills,
            seed=seed,
            model=NAME,
            pipelines=PIPELINES,
            seconds=seconds,
        )


async def _main(arguments: argparse.Namespace, sorts: Collection[str]) -> int:
    report = {}
    for sort in sorts:
        with tempfile.TemporaryDirectory(prefix="shunt-kinds-") as directory:
            report[sort] = await _of_sort(
                sort, Path(directory), arguments.kills, arguments.seed, arguments.seconds
            )
    written.show(report, arguments.out)
    wrong = any(one[name] for one in report.values() for name in WRONG)
    short = any(one["kills"] < arguments.kills for one in report.values())
    return 1 if wrong or short else 0


if __name__ == "__main__":
    from bench.kinds_models import SORTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="at each mesh")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, at each mesh")
    parser.add_argument(
        "--sort",
        action="append",
        choices=(REAL, *SORTS),
        help="one of the meshes; all where none is said",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(_main(arguments, arguments.sort or (REAL, *SORTS))))
