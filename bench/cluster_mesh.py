"""The controller's core and runtime with a real journal, by the clock of the wall; nodes beat."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.cluster_made import BEAT_S, SHAPE, STAGES, facts_of, plan_of, settings_of
from services.common.errors import NotFound
from services.common.generation import ModelRef
from services.common.nodes import Member, NodeFacts, StageHolding, StageSpec
from services.controller.core.cluster.actions import AskPlan, Beat, FormPipeline
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    MAX_COUNT,
    Capabilities,
    Offer,
    ProviderEvent,
)
from services.controller.core.cluster.plan import Plan
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Rates
from services.controller.departures import Journaled
from services.controller.event_log import EventLog
from services.controller.journal.sqlite import SqliteJournal
from services.controller.kv_sources import KvSources
from services.controller.runtime import ClusterRuntime, RuntimeSettings
from services.controller.signal import Signal

TURN_S = 0.005
"""Between two lots of beats."""
WAIT_S = 120.0


class Cloud:
    """A provider, engines and placement that do everything at once."""

    def __init__(self) -> None:
        self.capabilities = Capabilities(launches=True, ends=True, gives_notice=False)
        self.addresses: set[str] = set()
        self.launched_s: dict[str, float] = {}
        self.launches = Signal()
        self.formations: dict[str, str] = {}
        """By node that beats; empty while it is in none."""
        self.told: asyncio.Queue[ProviderEvent] = asyncio.Queue()
        self.runtime: ClusterRuntime

    def offers(self) -> tuple[Offer, ...]:
        return (Offer("own", "own", SHAPE, count=MAX_COUNT),)

    def offer_of(self, node_id: str) -> str:
        return "own"

    async def launch(self, node_id: str, offer: Offer) -> str:
        self.launched_s[node_id] = time.monotonic()
        self.launches.fire()
        await self.runtime.started.wait()
        self.formations[node_id] = ""  # it beats from now on
        asyncio.get_running_loop().create_task(self.runtime.register(facts_of(node_id)))
        return f"handle-of-{node_id}"

    async def recognise(self, facts: NodeFacts) -> str:
        return f"handle-of-{facts.node_id}"

    def holds(self, node_id: str) -> bool:
        return True

    async def terminate(self, node_id: str, grace_s: float) -> None: ...

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while True:
            yield await self.told.get()

    async def plan(self, ask: AskPlan) -> Plan:
        return plan_of(ask)

    async def hold(
        self, address: str, model: ModelRef, stages: Sequence[StageSpec], progress: Any
    ) -> tuple[StageHolding, ...]:
        return tuple(
            StageHolding(model, stage, held=True, kv_blocks=4096, numerics_class="class")
            for stage in stages
        )

    async def form(self, formation: FormPipeline) -> None:
        self.formations |= {m.node_id: formation.formation_id for m in formation.members}

    async def dissolve(self, formation_id: str, member: Member) -> None: ...

    async def forget(self, address: str) -> None: ...

    async def close(self) -> None: ...


class Mesh:
    """A runtime at work, and nodes that beat."""

    def __init__(self, runtime: ClusterRuntime, cloud: Cloud, events: EventLog, nodes: int) -> None:
        self.runtime, self.cloud, self.events, self.nodes = runtime, cloud, events, nodes
        self.refused = 0

    async def until_serving(self) -> None:
        """Every pipeline takes requests."""
        async with asyncio.timeout(WAIT_S):
            while len(self.runtime.cluster.routes()[1]) < self.nodes // STAGES:
                await self.runtime.routes_changed.wait()

    async def said(self) -> Counter[str]:
        """Events by kind."""
        return Counter([event.kind async for event in self.events.follow(0, wait=False)])

    def hear(self, beat: Beat) -> None:
        try:
            self.runtime.heartbeat(beat)
        except NotFound:  # it was lost, and stops
            self.refused += 1


async def beat_all(
    formations: Mapping[str, str], for_s: float, heartbeat: Callable[[Beat], None]
) -> int:
    """Every node in turn, each once in BEAT_S; how many beats there were. A node that comes
    meanwhile beats too."""
    began_s, sent = time.monotonic(), 0.0
    beats = 0
    while (now_s := time.monotonic() - began_s) < for_s:
        names = list(formations)
        due = now_s / BEAT_S * len(names)
        for index in range(int(sent), int(due)):
            name = names[index % len(names)]
            heartbeat(Beat(name, facts_of(name).incarnation, formations[name], index))
            beats += 1
        sent = due
        await asyncio.sleep(TURN_S)
    return beats


@asynccontextmanager
async def mesh(nodes: int) -> AsyncIterator[Mesh]:
    clock, cloud = time.monotonic, Cloud()
    stand_in: Any = cloud
    ids = count(1)
    with TemporaryDirectory() as folder:
        journal = SqliteJournal(Path(folder) / "journal.db", reserve_bytes=0)
        events = EventLog(journal, time.time, 100_000)
        runtime = cloud.runtime = ClusterRuntime(
            Cluster(settings_of(nodes), lambda: f"formation-{next(ids)}", clock(), time.time()),
            RuntimeSettings(),
            provider=stand_in,
            engines=stand_in,
            kv=KvSources("replay", 0.0, clock, lambda _: (), fetch_s=0.0),
            planning=stand_in,
            journal=journal,
            events=events,
            journaled=Journaled(
                streams=lambda _: (),
                lengths=lambda _: AnswerLengths(),
                rates=lambda _, __: Rates(),
                promise=lambda _: {},
            ),
            promise_onward=lambda _: None,
            heads_changed=Signal(),
            clock=clock,
        )
        work = asyncio.create_task(runtime.run({}))
        try:
            made = Mesh(runtime, cloud, events, nodes)
            beating = asyncio.create_task(beat_all(cloud.formations, WAIT_S, made.hear))
            await made.until_serving()
            beating.cancel()
            yield made
        finally:
            work.cancel()
            await asyncio.wait([work])
            await journal.close()
