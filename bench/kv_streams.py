"""Many streams that are handed over at once: `python -m bench.kv --streams 64`.

So many streams run in a mesh of two pipelines when a node of the one that has more of them is given
notice. They all go on at the other one, and who of them waits longest waits the longest gap. While
their blocks go ahead, the old head decodes on: what is lost of that is told, too. The spare that
takes the place of the one that is used begins to start behind all this.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench.kv_mesh import (
    NOTICE_S,
    WAIT_S,
    body_of,
    computed_positions,
    controller_of,
    engine_stats,
    starts_held,
)
from bench.spares import until_warm
from services.common import channels
from services.common.roles import Role

BEFORE, BEHIND = 8, 8
"""Events of each stream before the notice, and behind the hand-over."""
RATED_S = 5.0
"""Before the notice, for the rate of decoding then."""
LOOK_S = 1.0
"""Who looks more often takes part of a core from what is looked at."""


@dataclass(frozen=True)
class Crowd:
    """One hand-over of many."""

    streams: int
    """That moved."""
    gaps_s: dict[int, float]
    """Of each of them, by its number."""
    computed_positions: int
    moved_by: dict[str, int]
    went_ahead: dict[str, str]
    """As the event log has it; empty where nothing went ahead."""
    decodes: float | None
    """Rate of decoding while blocks went ahead, of that before the notice."""
    texts: dict[int, str]
    """Of each that moved."""

    @property
    def longest_gap_s(self) -> float:
        return max(self.gaps_s.values())

    @property
    def median_gap_s(self) -> float:
        return median(self.gaps_s.values())


def rate(records: Sequence[meshes.StreamRecord], start_s: float, end_s: float) -> float:
    """Events a second of all of them together."""
    arrivals_s = (at_s for record in records for at_s in record.arrivals_s)
    return sum(start_s <= at_s < end_s for at_s in arrivals_s) / (end_s - start_s)


@asynccontextmanager
async def _running(
    mesh: meshes.Mesh, client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]
) -> AsyncIterator[list[meshes.StreamRecord]]:
    """A stream for each, all under way."""
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    try:
        await meshes.until(lambda: all(len(r.arrivals_s) >= BEFORE for r in records), WAIT_S)
        yield records
    finally:
        for record in records:  # unread they would run on
            await client.delete(f"{mesh.url()}/v1/generations/{record.generation_id}")
        await asyncio.gather(*tasks, return_exceptions=True)


async def move_all(
    mesh: meshes.Mesh,
    client: httpx.AsyncClient,
    contexts: Sequence[int],
    seed: int,
    also: Mapping[str, Any],
) -> Crowd:
    """Of all streams of one of the two pipelines; there is one for each of the contexts, and all
    have `also` this in their requests."""
    async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        await until_warm(stub, 1)
        await mesh.until_ready(2, WAIT_S)
        bodies = [{**body_of(context, seed + n), **also} for n, context in enumerate(contexts)]
        async with _running(mesh, client, bodies) as records:
            await asyncio.sleep(RATED_S)
            lines, struck, tail = await _struck(mesh)
            moving = {r.generation_id: r for r in records if r.generation_id in struck}
            before = await engine_stats(mesh)
            told_s, offset_s = time.monotonic(), time.time() - time.monotonic()
            async with starts_held(mesh), asyncio.timeout(WAIT_S):
                await mesh.give_notice(tail, NOTICE_S)
                while any(lines[name]["epoch"] == struck[name] for name in moving):
                    await asyncio.sleep(LOOK_S)
                    lines = await _lines(mesh)
            had = {name: len(record.arrivals_s) for name, record in moving.items()}
            await meshes.until(
                lambda: all(len(r.arrivals_s) >= had[n] + BEHIND for n, r in moving.items()), WAIT_S
            )
            after, lines = await engine_stats(mesh), await _lines(mesh)
            asked = controller_pb2.WatchEventsRequest(no_wait=True)
            events = [event async for event in stub.WatchEvents(asked, timeout=60)]
    ahead = next(
        (
            (dict(event.attributes), event.time_unix_s - offset_s)
            for event in reversed(events)
            if event.kind == "blocks_went_ahead" and event.time_unix_s - offset_s > told_s
        ),
        None,
    )
    moved = {n: r for n, r in enumerate(records) if r.generation_id in moving}
    during = rate(list(moving.values()), told_s, ahead[1]) if ahead else 0.0
    return Crowd(
        len(moving),
        {number: record.longest_gap_s(told_s) for number, record in moved.items()},
        computed_positions(before, after),
        dict(Counter(str(lines[name]["moved_by"]) for name in moving)),
        ahead[0] if ahead else {},
        during / rate(list(moving.values()), told_s - RATED_S, told_s) if ahead else None,
        {number: record.text for number, record in moved.items()},
    )


async def _lines(mesh: meshes.Mesh) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in (await mesh.status())["generations"]}


async def _struck(mesh: meshes.Mesh) -> tuple[dict[str, dict[str, Any]], dict[str, int], str]:
    """All generations; those of the pipeline that has most of them, each with its epoch; and that
    pipeline's last node."""
    status = await mesh.status()
    lines = {line["id"]: line for line in status["generations"]}
    (most, _), *_ = Counter(line["pipeline"] for line in lines.values()).most_common()
    pipeline = next(p for p in status["pipelines"] if p["id"] == most)
    struck = {name: line["epoch"] for name, line in lines.items() if line["pipeline"] == most}
    return lines, struck, pipeline["stages"][-1]["node"]


def figures(crowds: Sequence[Crowd]) -> dict[str, Any]:
    """Of one way."""
    decodes = [crowd.decodes for crowd in crowds if crowd.decodes is not None]
    return {
        "moved": [crowd.streams for crowd in crowds],
        "moved_by": [crowd.moved_by for crowd in crowds],
        "longest_gap_s": [round(crowd.longest_gap_s, 3) for crowd in crowds],
        "median_gap_s": [round(crowd.median_gap_s, 3) for crowd in crowds],
        "computed_positions": [crowd.computed_positions for crowd in crowds],
        "decodes_while_blocks_go_ahead": [round(one, 3) for one in decodes],
        "bytes_a_block_that_went_ahead": [
            round(int(crowd.went_ahead["bytes"]) / max(1, int(crowd.went_ahead["blocks"])))
            for crowd in crowds
            if crowd.went_ahead
        ],
    }


def compared(by_way: dict[str, list[Crowd]], contexts: Sequence[int]) -> dict[str, Any]:
    """The report of two ways, of which each pair had the same questions."""
    first, second = by_way
    longest = {way: median(c.longest_gap_s for c in crowds) for way, crowds in by_way.items()}
    different = 0
    for one, other in zip(*by_way.values(), strict=True):
        for number in one.texts.keys() & other.texts.keys():
            texts = one.texts[number], other.texts[number]
            common = min(map(len, texts))
            different += texts[0][:common] != texts[1][:common]
    return {
        "different": different,
        **{way: figures(crowds) for way, crowds in by_way.items()},
        "median_gap_s_by_context": {
            str(context): {way: _of_context(by_way[way], contexts, context) for way in by_way}
            for context in sorted(set(contexts))
        },
        "ratio_of_longest_gaps": round(longest[second] / longest[first], 3),
    }


def _of_context(crowds: Sequence[Crowd], contexts: Sequence[int], context: int) -> float | None:
    """Of all that had it and moved; None: none did."""
    gaps = [
        gap_s
        for crowd in crowds
        for number, gap_s in crowd.gaps_s.items()
        if contexts[number] == context
    ]
    return round(median(gaps), 3) if gaps else None
