"""Kills engines under answers of every kind and compares all that a reader got.

`python -m bench.kinds --kills 50` starts meshes of its own and prints JSON: one of SmolLM2, one of
a tiny model for all kinds, twenty schemas, responses and batches, and one for each form of calls
and for thoughts (`bench.kinds_models`). Requests of all kinds run beside one another; a random
engine of a pipeline that carries some of them is killed. What came of each must be, field by field,
what the same request brought with nothing in its way: texts, calls and their arguments, thoughts,
log probabilities to the last digit, events of a response, usage; and what was to follow a schema
follows it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from bench import kinds_asked, written
from bench import mesh as meshes
from bench.bounds import rate_bound_95
from bench.kinds_answers import Answer, ask
from bench.kinds_asked import Kind

BEGUN = 4
"""Events of an answer before its engines are worth a kill."""
KILLS_A_ROUND = 3
"""Of the engines under one answer: more would make the longest ones of it all that is struck."""
REAL = "smollm2"
"""The mesh of a model that says something."""


class Round:
    """All kinds at once, each so many times."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        mesh: meshes.Mesh,
        model: str,
        kinds: Mapping[str, Kind],
        copies: int,
    ) -> None:
        self._mesh = mesh
        self.answers = [(name, Answer()) for _ in range(copies) for name in kinds]
        self._tasks = [
            asyncio.create_task(
                ask(client, mesh.url(index % mesh.routers), model, kinds[name], answer)
            )
            for index, (name, answer) in enumerate(self.answers)
        ]

    @property
    def over(self) -> bool:
        """Nothing runs any more."""
        return all(task.done() for task in self._tasks)

    async def end(self) -> None:
        """Returns when it is over."""
        await asyncio.gather(*self._tasks)

    async def kill(self, randomness: random.Random, struck: Counter[str]) -> set[str] | None:
        """Kills an engine of the pipeline whose kinds were struck least so far, once they have
        begun: the kinds that it carried; None where nothing is left to strike."""
        while not self.over:
            status = await self._mesh.status()
            carried: dict[str, set[str]] = {}
            for one in status["generations"]:
                for kind, answer in self.answers:
                    if answer.carries(one["id"]) and answer.events >= BEGUN and not answer.done:
                        carried.setdefault(one["pipeline"], set()).add(kind)
            ready = [p for p in status["pipelines"] if p["state"] == "ready" and p["id"] in carried]
            if ready:
                pipeline = min(
                    ready, key=lambda one: sorted(struck[kind] for kind in carried[one["id"]])
                )
                node = randomness.choice(pipeline["stages"])["node"]
                pid = next(one["pid"] for one in status["nodes"] if one["id"] == node)
                os.kill(pid, signal.SIGKILL)
                return carried[pipeline["id"]]
            await asyncio.sleep(0.05)
        return None


async def run(
    mesh: meshes.Mesh,
    kinds: Mapping[str, Kind],
    *,
    kills: int,
    seed: int,
    model: str = meshes.MODEL,
    pipelines: int = 2,
    copies: int = 1,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """The report; the mesh has so many pipelines and is left with them. No round begins once so
    many seconds have passed."""
    randomness = random.Random(seed)
    began_s = time.monotonic()
    struck: Counter[str] = Counter()
    failed: list[str] = []
    different: list[str] = []
    invalid: list[str] = []
    done = requests = 0
    async with httpx.AsyncClient(timeout=300.0) as client:
        expected = await undisturbed(client, mesh, model, kinds)
        with Progress(disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("kills", total=kills)
            while done < kills and time.monotonic() - began_s < seconds:
                await mesh.until_ready(pipelines)
                order = dict(sorted(kinds.items(), key=lambda one: struck[one[0]]))
                round_ = Round(client, mesh, model, order, copies)
                for _ in range(min(KILLS_A_ROUND, kills - done)):
                    carried = await round_.kill(randomness, struck)
                    if carried is None:
                        break
                    done += 1
                    struck.update(carried)
                    progress.advance(bar)
                    await mesh.until_ready(min(2, pipelines))
                await round_.end()
                for name, answer in round_.answers:
                    requests += 1
                    told = f"{name}: {sorted(answer.generation_ids)}"
                    if answer.error or not answer.done:
                        failed.append(f"{told}: {answer.error or 'cut short'}")
                        continue
                    if answer.what != expected[name].what or not answer.one_id_a_call:
                        different.append(told)
                    if not kinds[name].holds(answer):
                        invalid.append(told)
        await mesh.until_ready(pipelines)
    return {
        "kills": done,
        "requests": requests,
        "struck": {name: struck[name] for name in kinds},
        "failures": failed,
        "differences": different,
        "invalid": invalid,
        "failure_rate_bound_95": rate_bound_95(len({*failed, *different, *invalid}), requests),
        "seconds": round(time.monotonic() - began_s, 1),
    }


async def undisturbed(
    client: httpx.AsyncClient, mesh: meshes.Mesh, model: str, kinds: Mapping[str, Kind]
) -> dict[str, Answer]:
    """What each kind brings with nothing in its way. Raises RuntimeError where one is not what was
    asked for."""
    round_ = Round(client, mesh, model, kinds, 1)
    await round_.end()
    answers = dict(round_.answers)
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
    if sort == REAL:
        async with meshes.running(directory / "mesh", routers=2) as mesh:
            kinds = kinds_asked.plain(1)
            return await run(mesh, kinds, kills=kills, seed=seed, seconds=seconds)
    from bench.kinds_models import NAME, OPTIONS, PIPELINES, SORTS

    store = await SORTS[sort].store(directory)
    async with meshes.running(
        directory / "mesh", routers=2, options=OPTIONS, pipelines=PIPELINES, store=store
    ) as mesh:
        return await run(
            mesh,
            SORTS[sort].kinds,
            kills=kills,
            seed=seed,
            model=NAME,
            pipelines=PIPELINES,
            copies=2,
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
    wrong = ("failures", "differences", "invalid")
    return 1 if any(one[name] for one in report.values() for name in wrong) else 0


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
