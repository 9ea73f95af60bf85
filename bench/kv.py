"""The gap of a planned hand-over by KV and by replay, by the length of what was said.

`python -m bench.kv --pairs 9` starts two meshes with a warm spare each, one of which hands over by
KV and one by replay, and takes turns between them. In each, one stream with a context of so many
tokens is under way when its pipeline's last node is given notice; the spare takes its place. What
the reader waits for then, at the most, is the gap. The same text must come from both.

With `--streams 64` so many run in each mesh, of the contexts in turn, and all those of one pipeline
move at once. `--ways replay auto` compares what the mesh chooses for each of them instead, and
`--ways kv int8` blocks as they lie in caches with rounded ones, whose texts differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2_grpc

from bench import kv_streams, written
from bench import mesh as meshes
from bench.kv_mesh import (
    NO_END,
    NOTICE_S,
    WAIT_S,
    body_of,
    computed_positions,
    controller_of,
    engine_stats,
)
from bench.spares import until_warm
from services.common import channels
from services.common.roles import Role

WAYS = ("replay", "kv", "auto", "int8")
CONTEXTS = (500, 2_000, 7_000)
BEFORE, BEHIND = 24, 40
"""Events of a stream before its node is given notice, and behind the hand-over."""


@dataclass(frozen=True)
class Move:
    """One hand-over."""

    context_tokens: int
    gap_s: float
    computed_positions: int
    """Of the stream, at its new head."""
    filled_blocks: int
    moved_by: str | None
    text: str


async def _pipeline(mesh: meshes.Mesh, record: meshes.StreamRecord) -> tuple[dict[str, Any], Any]:
    """Of the stream, and the generation's line."""
    status = await mesh.status()
    line = next(g for g in status["generations"] if g["id"] == record.generation_id)
    pipeline = next((p for p in status["pipelines"] if p["id"] == line["pipeline"]), None)
    return line, pipeline


def asked_of(way: str) -> dict[str, Any]:
    """Of a request, beside what all ask for."""
    return NO_END | ({"kv_int8": True} if way == "int8" else {})


async def move(
    mesh: meshes.Mesh, client: httpx.AsyncClient, context: int, seed: int, way: str
) -> Move:
    """Of one stream that runs alone."""
    async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
        await until_warm(controller_pb2_grpc.ControllerServiceStub(channel), 1)
    await mesh.until_ready(2, WAIT_S)
    record = meshes.StreamRecord()
    body = body_of(context, seed) | asked_of(way)
    task = asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
    try:
        await meshes.until(lambda: len(record.arrivals_s) >= BEFORE, WAIT_S)
        line, pipeline = await _pipeline(mesh, record)
        tail = pipeline["stages"][-1]["node"]
        before = await engine_stats(mesh)
        told_s, epoch = time.monotonic(), line["epoch"]
        await mesh.give_notice(tail, NOTICE_S)
        async with asyncio.timeout(WAIT_S):
            while line["epoch"] == epoch or pipeline is None or not line["moved_by"]:
                line, pipeline = await _pipeline(mesh, record)
                await asyncio.sleep(0.05)
        had = len(record.arrivals_s)
        await meshes.until(lambda: len(record.arrivals_s) >= had + BEHIND, WAIT_S)
        after = await engine_stats(mesh)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    filled = {process: stats.filled_kv_blocks for process, stats in before.items()}
    return Move(
        context,
        record.longest_gap_s(told_s),
        computed_positions(before, after),
        max(now.filled_kv_blocks - filled.get(process, 0) for process, now in after.items()),
        line["moved_by"],
        record.text,
    )


def figures(moves: Sequence[Move]) -> dict[str, Any]:
    """Of one context and way."""
    gaps = sorted(one.gap_s for one in moves)
    return {
        "moves": len(moves),
        "gap_s": {"p50": round(statistics.median(gaps), 3), "max": round(gaps[-1], 3)},
        "computed_positions": max(one.computed_positions for one in moves),
        "filled_blocks": min(one.filled_blocks for one in moves),
        "moved_by": sorted({str(one.moved_by) for one in moves}),
    }


async def _tolerant_key(file: Path) -> str:
    """Of the class whose blocks may be rounded."""
    asked = ("--tenant", "bench", "--class", "tolerant", "--file", str(file), "--json")
    made = await meshes.run_shunt("keys", "create", *asked, timeout_s=60.0)
    key: str = json.loads(made)["key"]
    return key


@asynccontextmanager
async def both(
    ways: Sequence[str], store: Path | None
) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, meshes.Mesh]]]:
    """A mesh of each way."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shunt-kv-")))
        limits, headers, keys = httpx.Limits(max_connections=None), dict[str, str](), list[str]()
        if "int8" in ways:
            file = folder / "keys.json"
            headers["authorization"] = f"Bearer {await _tolerant_key(file)}"
            keys = ["--keys", str(file)]
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=WAIT_S, limits=limits, headers=headers)
        )
        running: dict[str, meshes.Mesh] = {}
        for way in ways:
            up = meshes.running(
                folder / way,
                env={**os.environ, "SHUNT_CONTROLLER_HANDOVER": "kv" if way == "int8" else way},
                options=("--spares", "1", *keys),
                store=store,
            )
            running[way] = await stack.enter_async_context(up)
        yield client, running


def begun(pairs: int, limit_s: float, clock: Callable[[], float]) -> Iterator[int]:
    """Numbers of so many pairs; behind `limit_s` none begins but the first."""
    until_s = clock() + limit_s
    for pair in range(pairs):
        if pair and clock() >= until_s:
            return
        yield pair


async def run_streams(
    pairs: int,
    ways: Sequence[str],
    streams: int,
    contexts: Sequence[int],
    store: Path | None,
    limit_s: float = inf,
) -> dict[str, Any]:
    """The report of many at once; behind `limit_s` no pair begins."""
    found: dict[str, list[kv_streams.Crowd]] = {way: [] for way in ways}
    asked = [contexts[number % len(contexts)] for number in range(streams)]
    moved_pairs = 0
    async with both(ways, store) as (client, running):
        for pair in begun(pairs, limit_s, time.monotonic):
            moved_pairs += 1
            for way in ways[:: 1 if pair % 2 else -1]:
                moved = await kv_streams.move_all(
                    running[way], client, asked, 1_000 * pair, asked_of(way)
                )
                found[way].append(moved)
                shown = {**asdict(moved), "texts": len(moved.texts), "way": way}
                print(json.dumps(shown), file=sys.stderr, flush=True)
    report = {"pairs": moved_pairs, "streams": streams, "contexts": list(contexts)}
    return {**report, **kv_streams.compared(found, asked)}


async def run(
    pairs: int,
    ways: Sequence[str],
    contexts: Sequence[int],
    store: Path | None,
    limit_s: float = inf,
) -> dict[str, Any]:
    """The report of one at a time; behind `limit_s` no pair begins."""
    found: dict[tuple[int, str], list[Move]] = {}
    different = moved_pairs = 0
    async with both(ways, store) as (client, running):
        for pair in begun(pairs, limit_s, time.monotonic):
            moved_pairs += 1
            for context in contexts:
                texts = []
                for way in ways[:: 1 if pair % 2 else -1]:
                    moved = await move(running[way], client, context, 100 * pair + context, way)
                    found.setdefault((context, way), []).append(moved)
                    texts.append(moved.text)
                    shown = {**asdict(moved), "text": len(moved.text), "way": way}
                    print(json.dumps(shown), file=sys.stderr, flush=True)
                common = min(map(len, texts))
                different += texts[0][:common] != texts[1][:common]
    report: dict[str, Any] = {"pairs": moved_pairs, "different": different}
    for context in contexts:
        by_way = {way: figures(found[context, way]) for way in ways}
        first, second = (by_way[way]["gap_s"]["p50"] for way in ways)
        report[str(context)] = by_way | {"ratio": round(second / first, 3)}
    return report


async def _main(arguments: argparse.Namespace) -> int:
    if arguments.streams > 1:
        report = await run_streams(
            arguments.pairs,
            arguments.ways,
            arguments.streams,
            arguments.contexts,
            arguments.store,
            arguments.limit_s,
        )
    else:
        report = await run(
            arguments.pairs,
            arguments.ways,
            arguments.contexts,
            arguments.store,
            arguments.limit_s,
        )
    written.show(report, arguments.out)
    return 1 if report["different"] and "int8" not in arguments.ways else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--ways", nargs=2, choices=WAYS, default=WAYS[:2], help="one to the other")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument(
        "--limit-s", type=float, default=inf, help="from the start on, behind which no pair begins"
    )
    parser.add_argument("--streams", type=int, default=1, help="that run in a mesh at once")
    parser.add_argument("--store", type=Path, help="a tensor store whose files are linked")
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
