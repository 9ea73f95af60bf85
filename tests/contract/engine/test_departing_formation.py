"""A formation is left one by one, as the controller has it done: its departures, its calls and
engines are the real ones; what the journal and the cluster know is told here."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from shuntserve.engine.v1 import engine_pb2

from services.common import wire
from services.common.exchange import Route
from services.common.generation import LayerRange
from services.common.nodes import Member
from services.controller.core.cluster.actions import DepartFormation
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import TAIL_POSITIONS, Rates
from services.controller.core.departure.move import Stream as Leaving
from services.controller.core.ledger.outcomes import RunsAt, ServingHead
from services.controller.departures import Departures, Journaled
from services.controller.engines import Engines, EngineTimeouts
from services.controller.event_log import EventLog
from services.controller.kv_sources import KvSources
from services.engine.backend import BLOCK_SIZE
from tests.contract.engine.rig import Rig, Stream, Worker, generate, request
from tests.contract.engine.test_engine_kv import PROMPT, journal, resumed
from tests.contract.engine.tiny import LAYERS, MODEL, expected_ids
from tests.unit.controller.small_runtime import Disk

TOKENS, SHORT = 250, 60
END_S = 60.0
RATES = Rates(replay_positions_per_s=1000.0, push_s=47.0)
"""A push that takes so long begins after a second, and may begin for twelve more."""


class Known:
    """What the cluster knows: of two formations, one of which departs."""

    def __init__(self, block_bytes: int, members: Mapping[str, tuple[Member, ...]]) -> None:
        self.view, self._members = self, members
        self.departed_from: list[str] = []
        self._block_bytes = block_bytes

    def runs_at(self, formation_id: str) -> RunsAt:
        return RunsAt("p1", MODEL, self._block_bytes)

    def members(self, formation_id: str) -> tuple[Member, ...]:
        return self._members[formation_id]

    def beside(self, formation_id: str) -> dict[str, int]:
        return {"f2": 1024}

    def departed(self, formation_id: str, now_s: float) -> None:
        self.departed_from.append(formation_id)


def members_of(workers: Sequence[Worker], *bounds: int) -> tuple[Member, ...]:
    ranges = itertools.pairwise(bounds)
    return tuple(
        Member(worker.node_id, worker.incarnation, worker.address, LayerRange(*layers))
        for worker, layers in zip(workers, ranges, strict=True)
    )


async def test_one_ends_there_and_one_goes_on_elsewhere_from_its_blocks(rig: Rig) -> None:
    old = [await rig.worker(step_s=0.02) for _ in range(2)]
    new = await rig.worker(kv_silent_s=60.0, kv_fetch_s=60.0)
    await rig.form([new], [], "f2")
    await rig.form(old, [2], "f1")
    formed = await old[0].stub.Form(rig.form_request(old, [2], "f1", 0), timeout=60)
    assert formed.kv_block_bytes == LAYERS * 64
    goes, ends = request("goes", PROMPT, TOKENS), request("ends", PROMPT[::-1], SHORT)
    streams = {one.generation_id: generate(old[0], one, "f1") for one in (goes, ends)}
    for stream in streams.values():
        await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)

    def running(formation_id: str) -> list[Leaving]:
        """As the journal has them; the one that goes would not end in time."""
        known = {"goes": (1_000_000, 1.0), "ends": (SHORT, 50.0)}
        return [
            Leaving(name, len(PROMPT) + _length(one), (_length(one),), *known[name])
            for name, one in streams.items()
            if not one.closed
        ]

    loop, disk = asyncio.get_running_loop(), Disk()
    store: Any = disk
    events = EventLog(store, loop.time, 100)
    members = {"f1": members_of(old, 0, 2, LAYERS), "f2": members_of([new], 0, LAYERS)}
    route = Route("p2", "f2", new.incarnation, new.address, 1.0, MODEL, 1024)
    known = Known(formed.kv_block_bytes, members)
    cluster: Any = known
    kv = KvSources("kv", 60.0, loop.time, known.members, fetch_s=60.0)
    departures = Departures(
        cluster,
        Engines(EngineTimeouts(drain_s=60.0), max_message_bytes=1 << 22),
        Journaled(
            running,
            lambda _: AnswerLengths(),
            lambda _, __: RATES,
            lambda _: {"goes": ServingHead(route, True)},
        ),
        events,
        kv=kv,
        block_positions=BLOCK_SIZE,
        clock=loop.time,
    )
    journaling = asyncio.create_task(journal(old[0]))
    try:
        leaving = departures.leave(DepartFormation("f1", members["f1"], loop.time() + END_S))
        await asyncio.gather(leaving, *(one.end() for one in streams.values()))
    finally:
        journaling.cancel()
    assert known.departed_from == ["f1"]
    assert streams["ends"].closed == engine_pb2.CLOSE_REASON_FINISHED
    assert streams["ends"].ids[0] == expected_ids(PROMPT[::-1], SHORT)
    assert streams["goes"].closed == engine_pb2.CLOSE_REASON_MOVED
    held, source = streams["goes"].ids[0], kv.of("f1", "goes", False)
    assert source is not None
    assert kv.of("f1", "ends", False) is None
    stream = await resumed(new, goes, "f2", held, wire.kv_source_to(source))
    assert held + stream.ids[0] == expected_ids(PROMPT, TOKENS)
    stats = (await new.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats
    assert stats.replayed_tokens <= TAIL_POSITIONS
    told = {e.generation_id: e.attributes async for e in events.follow(1, wait=False)}
    assert (told["ends"]["choice"], told["ends"]["bytes"]) == ("finish", "0")
    assert told["goes"]["choice"] == "push"
    assert int(told["goes"]["bytes"]) >= len(PROMPT) // BLOCK_SIZE * LAYERS * 64


def _length(stream: Stream) -> int:
    return len(stream.ids.get(0, ()))
