"""Goodput of the same nodes with prefill and decode apart, and together.

`python -m bench.phases --rounds 2` starts one mesh of two pipelines. In turns its plan has them do
both phases, or one prefill and the other decode: no node loads for that, and how long it takes
until routers know is told. To each the same requests come at the same random times. They are of two
kinds, conversation and code, of an eighth of the lengths that such requests had in a public trace
(medians of Azure's of November 2023). An answer counts for the goodput when its first token came
within one target and the others within another, in the mean. The same text must come from both.

`python -m bench.phases --prompt 2000 --rounds 5` asks one request at a time instead, with a prompt
of so many tokens: what lies between its first token and its second one, which where phases are
apart comes from another pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench import written
from bench.kv_mesh import WORDS, body_of
from services.common import channels
from services.common.roles import Role

KINDS = {"conversation": (1020 / 8, 129 / 8), "code": (1469 / 8, 13 / 8)}
"""Prompt and output tokens, medians; an answer has four at least."""
SPREAD = 0.5
"""Standard deviation of a length's logarithm."""
WAYS = {"both": ("both", "both"), "split": ("prefill", "decode")}
WAIT_S = 300.0
ALONE_TOKENS = 24
"""Of an answer that is asked for alone."""


@dataclass(frozen=True)
class Request:
    """One that comes at its time, whatever became of those before."""

    kind: str
    at_s: float
    body: dict[str, Any]


@dataclass
class Answer:
    """What came of one."""

    kind: str
    ttft_s: float
    tpot_s: float
    text: str


@dataclass
class Found:
    """What came of all rounds of one way."""

    answers: list[Answer] = field(default_factory=list)
    took_s: float = 0.0
    flips_ms: list[float] = field(default_factory=list)


def requests(seed: int, count: int, rate_rps: float) -> list[Request]:
    """Poisson arrivals of both kinds."""
    chance, at_s, made = random.Random(seed), 0.0, []
    for number in range(count):
        at_s += chance.expovariate(rate_rps)
        kind = chance.choice(sorted(KINDS))
        prompt, output = (
            round(median * chance.lognormvariate(0.0, SPREAD)) for median in KINDS[kind]
        )
        words = " ".join(chance.choice(WORDS) for _ in range(max(8, prompt - 30)))
        body = {
            "messages": [{"role": "user", "content": f"Go on with these: {words}"}],
            "max_tokens": max(4, output),
            "temperature": 0.9,
            "seed": 1000 * seed + number,
            "ignore_eos": True,
        }
        made.append(Request(kind, at_s, body))
    return made


async def controller_of(mesh: meshes.Mesh) -> str:
    services = (await mesh.status())["services"]
    address: str = next(s["grpc"] for s in services if s["name"] == "controller")
    return address


async def flip(mesh: meshes.Mesh, phases: Sequence[str]) -> float:
    """Gives the pipelines these phases; milliseconds until routers are told."""
    status = await mesh.until_ready(2)
    pipelines = sorted(status["pipelines"], key=lambda one: str(one["id"]))
    plan = {
        "deployments": [
            {
                "model": status["plan"]["deployments"][0]["model"],
                "pipelines": [
                    {
                        "id": pipeline["id"],
                        "phase": phase,
                        "stages": [
                            {"node": stage["node"], "layers": stage["layers"]}
                            for stage in pipeline["stages"]
                        ],
                    }
                    for pipeline, phase in zip(pipelines, phases, strict=True)
                ],
            }
        ]
    }
    if [pipeline["phase"] for pipeline in pipelines] == list(phases):
        return 0.0
    before = {pipeline["id"]: pipeline["formation"] for pipeline in pipelines}
    async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        watch: Any = stub.WatchRoutes(controller_pb2.WatchRoutesRequest(router_id="bench"))
        try:
            told = await watch.read()
            begin_s = time.monotonic()
            request = controller_pb2.ApplyPlanRequest(plan_json=json.dumps(plan), source="bench")
            applied = asyncio.ensure_future(stub.ApplyPlan(request, timeout=WAIT_S))
            async with asyncio.timeout(WAIT_S):
                while any(route.hands_on for route in told.routes) is not ("prefill" in phases):
                    told = await watch.read()
            took_s = time.monotonic() - begin_s
            await applied
        finally:
            watch.cancel()
    after = {one["id"]: one["formation"] for one in (await mesh.until_ready(2))["pipelines"]}
    if before != after:
        raise RuntimeError(f"phases alone were others, and {before} became {after}")
    return took_s * 1e3


@dataclass(frozen=True)
class Alone:
    """What came of a request that nothing else ran beside."""

    first_s: float
    """Until its first token."""
    second_s: float
    """From that to the second one."""
    later_s: float
    """Between two of the others, the median."""
    text: str


async def alone(mesh: meshes.Mesh, client: httpx.AsyncClient, prompt: int, salt: str) -> Alone:
    """Of one with a prompt of so many tokens."""
    body = body_of(prompt, prompt) | {"max_tokens": ALONE_TOKENS, "cache_salt": salt}
    record, begin_s = meshes.StreamRecord(), time.monotonic()
    await meshes.stream_chat(client, mesh.url(), body, record)
    at_s = record.arrivals_s
    if not record.complete or len(at_s) < 4:
        raise RuntimeError(f"an answer is not whole: {record.error}")
    later = [after - before for before, after in pairwise(at_s[1:])]
    return Alone(at_s[0] - begin_s, at_s[1] - at_s[0], statistics.median(later), record.text)


async def run_alone(
    mesh: meshes.Mesh, client: httpx.AsyncClient, prompt: int, rounds: int
) -> dict[str, Any]:
    """The report of one request at a time."""
    found: dict[str, list[Alone]] = {way: [] for way in WAYS}
    flips: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            flips[way].append(await flip(mesh, WAYS[way]))
            found[way].append(await alone(mesh, client, prompt, f"{way} {number}"))
            shown = {**asdict(found[way][-1]), "text": len(found[way][-1].text), "way": way}
            print(json.dumps(shown), file=sys.stderr, flush=True)
    texts = {one.text for answers in found.values() for one in answers}
    report: dict[str, Any] = {"prompt_tokens": prompt, "different": len(texts) - 1}
    for way, answers in found.items():
        report[way] = {
            "answers": len(answers),
            "first_token_s": quantiles([one.first_s for one in answers]),
            "second_token_s": quantiles([one.second_s for one in answers]),
            "later_token_s": quantiles([one.later_s for one in answers]),
            "flips_ms": [round(one, 1) for one in flips[way] if one],
        }
    return report


async def _ask(client: httpx.AsyncClient, url: str, request: Request, salt: str) -> Answer:
    record, begin_s = meshes.StreamRecord(), time.monotonic()
    await meshes.stream_chat(client, url, request.body | {"cache_salt": salt}, record)
    if not record.complete or record.usage is None:
        raise RuntimeError(f"an answer is not whole: {record.error}")
    arrivals_s = record.arrivals_s or [time.monotonic()]  # of tokens that show nothing
    first_s, last_s = arrivals_s[0], arrivals_s[-1]
    behind = max(1, record.usage["completion_tokens"] - 1)
    return Answer(request.kind, first_s - begin_s, (last_s - first_s) / behind, record.text)


async def play(
    mesh: meshes.Mesh, client: httpx.AsyncClient, load: Sequence[Request], salt: str
) -> tuple[list[Answer], float]:
    """The answers, and the time until the last one was whole."""
    begin_s, tasks = time.monotonic(), []
    for request in load:
        await asyncio.sleep(max(0.0, begin_s + request.at_s - time.monotonic()))
        tasks.append(asyncio.create_task(_ask(client, mesh.url(), request, salt)))
    return list(await asyncio.gather(*tasks)), time.monotonic() - begin_s


def figures(found: Found, ttft_s: float, tpot_s: float) -> dict[str, Any]:
    """Of one way."""
    answers = found.answers
    in_time = [a for a in answers if a.ttft_s <= ttft_s and a.tpot_s <= tpot_s]
    kinds = {kind: [a for a in in_time if a.kind == kind] for kind in KINDS}
    return {
        "answers": len(answers),
        "in_time": len(in_time),
        "in_time_by_kind": {kind: len(those) for kind, those in kinds.items()},
        "goodput_rps": round(len(in_time) / found.took_s, 3),
        "ttft_s": quantiles([a.ttft_s for a in answers]),
        "tpot_s": quantiles([a.tpot_s for a in answers]),
        "flips_ms": [round(one, 1) for one in found.flips_ms if one],
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The median, and what 95 of 100 are within."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"p50": round(statistics.median(ordered), 3), "p95": round(p95, 3)}


async def run_loads(
    mesh: meshes.Mesh, client: httpx.AsyncClient, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The report of goodput."""
    found = {way: Found() for way in WAYS}
    different = 0
    for number in range(arguments.rounds):
        load = requests(number, arguments.requests, arguments.rate)
        texts = {}
        for way in sorted(WAYS, reverse=bool(number % 2)):
            found[way].flips_ms.append(await flip(mesh, WAYS[way]))
            answers, took_s = await play(mesh, client, load, f"{way} {number}")
            found[way].answers += answers
            found[way].took_s += took_s
            texts[way] = [answer.text for answer in answers]
        different += sum(a != b for a, b in zip(texts["both"], texts["split"], strict=True))
    report: dict[str, Any] = {
        "targets_s": {"ttft": arguments.ttft, "tpot": arguments.tpot},
        "rate_rps": arguments.rate,
        "different": different,
    }
    for way, those in found.items():
        report[way] = figures(those, arguments.ttft, arguments.tpot)
    return report


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    with tempfile.TemporaryDirectory(prefix="shunt-phases-") as folder:
        up = meshes.running(
            Path(folder) / "mesh",
            options=("--node-speeds", arguments.node_speeds, "--phases", "prefill,decode"),
            store=arguments.store,
        )
        async with up as mesh, httpx.AsyncClient(timeout=WAIT_S) as client:
            if arguments.prompt:
                return await run_alone(mesh, client, arguments.prompt, arguments.rounds)
            return await run_loads(mesh, client, arguments)


async def _main(arguments: argparse.Namespace) -> int:
    report = await run(arguments)
    written.show(report, arguments.out)
    return 1 if report["different"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=40, help="of each round and way")
    parser.add_argument("--prompt", type=int, default=0, help="tokens; one request at a time")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--ttft", type=float, default=2.0, help="target, in seconds")
    parser.add_argument("--tpot", type=float, default=0.2, help="target, in seconds")
    parser.add_argument("--node-speeds", default="1,1")
    parser.add_argument("--store", type=Path, help="a tensor store whose files are linked")
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
