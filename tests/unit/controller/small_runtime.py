"""A runtime of the cluster core among fakes of all that it calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.common.errors import ResourceExhausted, Superseded
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape, StageHolding, StageSpec
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import (
    FormPipeline,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    Capabilities,
    NodeNotice,
    Offer,
    ProviderEvent,
)
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Rates, Stream
from services.controller.departures import Journaled
from services.controller.event_log import EventLog
from services.controller.journal.journal import Item, Saved
from services.controller.kv_sources import Handover, KvSources
from services.controller.runtime import (
    ClusterRuntime,
    RuntimeSettings,
)
from services.controller.signal import Signal
from tests.unit.controller.small_cluster import GOAL

SHAPE = NodeShape(1 << 30, 1.0)
SETTINGS = ClusterSettings(GOAL, expected_nodes=2, pipelines=1, can_launch=False, retry_s=0.01)
WAIT_S = 60.0


class Disk:
    """A journal whose writes wait for the test, or fail as often as it says."""

    def __init__(self) -> None:
        self.taken: list[Item] = []
        self.writes: list[set[str]] = []
        """Keys of the notes in each."""
        self.fails = 0
        self.full = False
        self.followed = False
        """Another controller leads, or may do so."""
        self.free = asyncio.Event()
        self.free.set()

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Task[None]:
        return asyncio.create_task(self._write(items))

    async def _write(self, items: Sequence[Item]) -> None:
        await self.free.wait()
        if self.full:
            raise ResourceExhausted("full")
        keys = {item.key for item in items if isinstance(item, Saved)}
        if keys and self.fails:
            self.fails -= 1
            raise ResourceExhausted("full")
        self.taken += items
        self.writes.append(keys)

    async def settled(self) -> None:
        await self.free.wait()

    async def confirmed(self) -> None:
        if self.followed:
            raise Superseded("another controller leads")

    def saved(self, key: str) -> list[str | None]:
        """Every value the note has had."""
        saved = [item for item in self.taken if isinstance(item, Saved)]
        return [item.value for item in saved if item.key == key]

    @property
    def keys(self) -> set[str]:
        """Of every note there was."""
        return set().union(*self.writes)

    @property
    def standing(self) -> dict[str, str]:
        """Notes as a restart finds them."""
        newest = {key: self.saved(key)[-1] for key in self.keys}
        return {key: note for key, note in newest.items() if note is not None}


class Mesh:
    """Provider, engines and placement, as far as the runtime sees them."""

    def __init__(self) -> None:
        self.formed: list[str] = []
        self.ended: list[str] = []
        self.adopted: list[str] = []
        self.ending = asyncio.Event()
        self.dissolving = asyncio.Event()
        self.dissolved = asyncio.Event()
        self.dissolved.set()
        self.loads = 0
        self.without_room = 0
        """So many holds find no room, and leave their stages in the store."""
        self.loadable = asyncio.Event()
        self.loadable.set()
        self.probing = asyncio.Event()
        self.refused = asyncio.Event()
        self.addresses: set[str] = set()
        """Connections to engines."""
        self.capabilities = Capabilities(launches=True, ends=True, gives_notice=True)
        self.noticed: list[tuple[str, float]] = []
        self.sold = ""
        """The offer of every node."""
        self.stranger = False
        """Whoever registers was started by somebody else."""
        self.told: asyncio.Queue[ProviderEvent] = asyncio.Queue()

    def offers(self) -> tuple[Offer, ...]:
        return ()

    def offer_of(self, node_id: str) -> str:
        return self.sold

    async def launch(self, node_id: str, offer: Offer) -> str:
        return f"handle-{node_id}"

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        deadline_s = asyncio.get_running_loop().time() + notice_s
        self.noticed.append((node_id, deadline_s))
        self.told.put_nowait(NodeNotice(node_id, deadline_s, kind))

    async def recognise(self, facts: NodeFacts) -> str:
        return "" if self.stranger else f"handle-{facts.node_id}"

    async def adopt(self, node_id: str, handle: str) -> bool:
        for _ in range(10):  # it may have to ask somebody
            await asyncio.sleep(0)
        assert node_id not in self.ended
        self.adopted.append(node_id)
        return True

    def holds(self, node_id: str) -> bool:
        return True

    async def terminate(self, node_id: str, grace_s: float) -> None:
        self.ended.append(node_id)
        self.ending.set()

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while True:
            yield await self.told.get()

    async def plan(self, question: Any) -> Plan:
        layers = (LayerRange(0, 1), LayerRange(1, 2))
        names = sorted(node.node_id for node in question.nodes)
        stages = tuple(
            PlannedStage(part, 1, SHAPE, name) for name, part in zip(names, layers, strict=True)
        )
        pipelines = (PlannedPipeline("pipeline-1", stages, 1.0),)
        return Plan(question.number, (Deployment(question.goals[0].model, THROUGHPUT, pipelines),))

    async def hold(
        self, address: str, model: ModelRef, stages: Sequence[StageSpec], progress: Any
    ) -> tuple[StageHolding, ...]:
        self.loads += 1
        self.addresses.add(address)
        await self.loadable.wait()
        if self.without_room:
            self.without_room -= 1
            return tuple(StageHolding(model, stage, cached=True) for stage in stages)
        return tuple(
            StageHolding(model, stage, held=True, kv_blocks=64, numerics_class="a")
            for stage in stages
        )

    async def form(self, formation: FormPipeline) -> int:
        self.formed.append(formation.formation_id)
        return 0

    async def dissolve(self, formation_id: str, member: Member) -> None:
        self.dissolving.set()
        await self.dissolved.wait()

    async def refuses(self, address: str) -> bool:
        self.probing.set()
        return await self.refused.wait()

    async def forget(self, address: str) -> None:
        self.addresses.discard(address)

    async def close(self) -> None: ...


class Set:
    """A runtime at work among fakes."""

    def __init__(self, settings: ClusterSettings = SETTINGS) -> None:
        self.settings = settings
        self.disk = Disk()
        self.mesh = Mesh()
        self.ids = iter(f"f{number}" for number in range(1, 100))
        self.routes = 0
        self.streams: tuple[Stream, ...] = ()
        """That run in every formation."""
        self.journaled = Journaled(
            streams=lambda _: self.streams,
            lengths=lambda _: AnswerLengths(),
            rates=lambda _, room: Rates(room_positions=room),
            promise=lambda _: {},
        )
        self.handover: Handover = "replay"

    @asynccontextmanager
    async def working(
        self, saved: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClusterRuntime]:
        """The wall clock is the loop's."""
        clock = asyncio.get_running_loop().time
        mesh: Any = self.mesh
        disk: Any = self.disk
        draw, now_s = lambda: next(self.ids), clock()
        saved = saved or {}
        cluster = Cluster.recover(self.settings, draw, saved, now_s, now_s)
        runtime = ClusterRuntime(
            cluster,
            RuntimeSettings(),
            provider=mesh,
            engines=mesh,
            kv=KvSources(self.handover, 5.0, clock, lambda _: (), fetch_s=60.0),
            planning=mesh,
            journal=disk,
            events=EventLog(disk, lambda: 0.0, 100),
            journaled=self.journaled,
            promise_onward=lambda _: None,
            heads_changed=Signal(),
            clock=clock,
        )
        work = asyncio.create_task(runtime.run(saved))
        async with asyncio.timeout(WAIT_S):
            await runtime.started.wait()
            yield runtime
        work.cancel()
        await asyncio.wait([work])


def facts(node_id: str, incarnation: str = "") -> NodeFacts:
    return NodeFacts(node_id, incarnation or f"i-{node_id}", "127.0.0.1:1", 7, SHAPE)


async def until_ready(runtime: ClusterRuntime) -> str:
    """The formation that takes requests."""
    while not (routes := runtime.cluster.routes()[1]):
        await runtime.routes_changed.wait(0.01)
    return routes[0].formation_id
