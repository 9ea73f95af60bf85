"""The gap of a planned hand-over by KV and by replay, by the length of what was said.

`python -m bench.kv --pairs 9` starts two meshes with a warm spare each, one of which hands over by
KV and one by replay, and takes turns between them. In each, one stream with a context of so many
tokens is under way when its pipeline's last node is given notice; the spare takes its place. What
the reader waits for then, at the most, is the gap. The same text must come from both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from bench import written
from bench.spares import until_warm
from services.common import channels
from services.common.roles import Role

CONTEXTS = (500, 2_000, 7_000)
WORDS = ("river", "lantern", "copper", "window", "garden", "winter", "letter", "harbour", "silver")
MAX_TOKENS = 1_000
BEFORE, BEHIND = 24, 40
"""Events of a stream before its node is given notice, and behind the hand-over."""
NOTICE_S = 60
WAIT_S = 240.0


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


def body_of(context: int, seed: int) -> dict[str, Any]:
    """A question of about so many tokens, a word each."""
    chance = random.Random(seed)
    words = " ".join(chance.choice(WORDS) for _ in range(context - 40))
    return {
        "messages": [{"role": "user", "content": f"Tell a story of these words: {words}"}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0.9,
        "seed": seed,
        "ignore_eos": True,
    }


async def _pipeline(mesh: meshes.Mesh, record: meshes.StreamRecord) -> tuple[dict[str, Any], Any]:
    """Of the stream, and the generation's line."""
    status = await mesh.status()
    line = next(g for g in status["generations"] if g["id"] == record.generation_id)
    pipeline = next((p for p in status["pipelines"] if p["id"] == line["pipeline"]), None)
    return line, pipeline


async def _engine_stats(mesh: meshes.Mesh) -> dict[str, engine_pb2.EngineStats]:
    """Of each engine that is there, by its process."""
    async with channels.open_channel(await _controller(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=10)
    found = {}
    for node in status.nodes:
        if not node.address:  # it is being launched
            continue
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            engine = engine_pb2_grpc.EngineServiceStub(channel)
            with suppress(grpc.aio.AioRpcError):  # it ends, or begins
                told = await engine.Describe(engine_pb2.DescribeRequest(), timeout=10)
                found[told.incarnation] = told.stats
    return found


async def _controller(mesh: meshes.Mesh) -> str:
    services = (await mesh.status())["services"]
    address: str = next(s["grpc"] for s in services if s["name"] == "controller")
    return address


async def move(mesh: meshes.Mesh, client: httpx.AsyncClient, context: int, seed: int) -> Move:
    """Of one stream that runs alone."""
    async with channels.open_channel(await _controller(mesh), Role.CONTROLLER) as channel:
        await until_warm(controller_pb2_grpc.ControllerServiceStub(channel), 1)
    await mesh.until_ready(2, WAIT_S)
    record = meshes.StreamRecord()
    body = body_of(context, seed)
    task = asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
    try:
        await meshes.until(lambda: len(record.arrivals_s) >= BEFORE, WAIT_S)
        line, pipeline = await _pipeline(mesh, record)
        tail = pipeline["stages"][-1]["node"]
        before = await _engine_stats(mesh)
        told_s, epoch = time.monotonic(), line["epoch"]
        await mesh.shunt("interrupt", tail, "--notice", str(NOTICE_S))
        async with asyncio.timeout(WAIT_S):
            while line["epoch"] == epoch or pipeline is None or not line["moved_by"]:
                line, pipeline = await _pipeline(mesh, record)
                await asyncio.sleep(0.05)
        had = len(record.arrivals_s)
        await meshes.until(lambda: len(record.arrivals_s) >= had + BEHIND, WAIT_S)
        after = await _engine_stats(mesh)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    nothing = engine_pb2.EngineStats()
    grown = [(stats, before.get(process, nothing)) for process, stats in after.items()]
    return Move(
        context,
        record.longest_gap_s(told_s),
        sum(_missed(now) - _missed(then) for now, then in grown),
        max(now.filled_kv_blocks - then.filled_kv_blocks for now, then in grown),
        line["moved_by"],
        record.text,
    )


def _missed(stats: engine_pb2.EngineStats) -> int:
    """Positions of sequences that came into the batch, and were computed nowhere."""
    return stats.prefix_queries - stats.prefix_hits


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


async def run(pairs: int, contexts: Sequence[int], store: Path | None) -> dict[str, Any]:
    """The report."""
    found: dict[tuple[int, str], list[Move]] = {}
    different = 0
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shunt-kv-")))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=WAIT_S))
        running: dict[str, meshes.Mesh] = {}
        for way in ("replay", "kv"):
            up = meshes.running(
                folder / way,
                env={**os.environ, "SHUNT_CONTROLLER_HANDOVER": way},
                options=("--spares", "1"),
                store=store,
            )
            running[way] = await stack.enter_async_context(up)
        for pair in range(pairs):
            for context in contexts:
                texts = []
                for way in ("replay", "kv") if pair % 2 else ("kv", "replay"):
                    moved = await move(running[way], client, context, 100 * pair + context)
                    found.setdefault((context, way), []).append(moved)
                    texts.append(moved.text)
                    shown = {**asdict(moved), "text": len(moved.text), "way": way}
                    print(json.dumps(shown), file=sys.stderr, flush=True)
                common = min(map(len, texts))
                different += texts[0][:common] != texts[1][:common]
    report: dict[str, Any] = {"pairs": pairs, "different": different}
    for context in contexts:
        by_way = {way: figures(found[context, way]) for way in ("replay", "kv")}
        replay, kv = (by_way[way]["gap_s"]["p50"] for way in ("replay", "kv"))
        report[str(context)] = by_way | {"ratio": round(kv / replay, 3)}
    return report


async def _main(arguments: argparse.Namespace) -> int:
    report = await run(arguments.pairs, arguments.contexts, arguments.store)
    written.show(report, arguments.out)
    return 1 if report["different"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--store", type=Path, help="a tensor store whose files are linked")
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
