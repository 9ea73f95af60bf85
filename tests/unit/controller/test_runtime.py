from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import ResourceExhausted, Unavailable
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape, StageHolding, StageSpec
from services.controller import runtime as controller_runtime
from services.controller.core.cluster.actions import (
    FormPipeline,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import (
    Capabilities,
    NodeGone,
    NodeNotice,
    NoticeKind,
    Offer,
    ProviderEvent,
)
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.snapshot import to_json
from services.controller.core.cluster.state import State
from services.controller.event_log import EventLog
from services.controller.journal.journal import Item, Saved
from services.controller.runtime import (
    HANDLE_PREFIX,
    SNAPSHOT,
    ClusterRuntime,
    RuntimeSettings,
)
from services.controller.signal import Signal
from tests.unit.controller.small_cluster import GOAL

SHAPE = NodeShape(1 << 30, 1.0)
SETTINGS = ClusterSettings(GOAL, expected_nodes=2, pipelines=1, can_launch=False, retry_s=0.01)
WAIT_S = 20.0


class Disk:
    """A journal whose writes wait for the test, or fail as often as it says."""

    def __init__(self) -> None:
        self.taken: list[Item] = []
        self.fails = 0
        self.full = False
        self.free = asyncio.Event()
        self.free.set()

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Task[None]:
        return asyncio.create_task(self._write(items))

    async def _write(self, items: Sequence[Item]) -> None:
        await self.free.wait()
        if self.full:
            raise ResourceExhausted("full")
        saves = any(isinstance(item, Saved) and item.key == SNAPSHOT for item in items)
        if saves and self.fails:
            self.fails -= 1
            raise ResourceExhausted("full")
        self.taken += items

    async def settled(self) -> None:
        await self.free.wait()

    def saved(self, key: str) -> list[str | None]:
        """Every value the note has had."""
        saved = [item for item in self.taken if isinstance(item, Saved)]
        return [item.value for item in saved if item.key == key]

    @property
    def snapshots(self) -> list[str | None]:
        return self.saved(SNAPSHOT)


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

    async def recognise(self, node_id: str, pid: int) -> str:
        return f"handle-{node_id}"

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
        return tuple(
            StageHolding(model, stage, held=True, kv_blocks=64, numerics_class="a")
            for stage in stages
        )

    async def form(self, formation: FormPipeline) -> None:
        self.formed.append(formation.formation_id)

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

    def __init__(self) -> None:
        self.disk = Disk()
        self.mesh = Mesh()
        self.ids = iter(f"f{number}" for number in range(1, 100))
        self.routes = 0

    @asynccontextmanager
    async def working(
        self, snapshot: str = "", *handles: tuple[str, str]
    ) -> AsyncIterator[ClusterRuntime]:
        """The wall clock is the loop's."""
        clock = asyncio.get_running_loop().time
        mesh: Any = self.mesh
        disk: Any = self.disk
        draw, now_s = lambda: next(self.ids), clock()
        if snapshot:
            cluster = Cluster.recover(SETTINGS, draw, snapshot, now_s, now_s)
        else:
            cluster = Cluster(SETTINGS, draw, now_s, now_s)
        runtime = ClusterRuntime(
            cluster,
            RuntimeSettings(tick_s=0.005),
            provider=mesh,
            engines=mesh,
            planning=mesh,
            journal=disk,
            events=EventLog(disk, lambda: 0.0, 100),
            heads_changed=Signal(),
            clock=clock,
        )
        work = asyncio.create_task(runtime.run(dict(handles)))
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


async def test_an_older_snapshot_never_follows_a_newer_one() -> None:
    world = Set()
    async with world.working() as runtime:
        world.disk.fails = 1
        await runtime.register(facts("a"))
        world.disk.free.clear()
        later = asyncio.create_task(runtime.register(facts("b")))
        for _ in range(5):
            await runtime.routes_changed.wait(0.01)
        world.disk.free.set()
        await later
        await until_ready(runtime)
        for _ in range(5):
            await runtime.routes_changed.wait(0.01)
        newest = runtime.cluster._snapshot
    assert world.disk.snapshots[-1] == newest
    assert len(world.disk.snapshots) == len(set(world.disk.snapshots))


async def test_a_snapshot_the_journal_did_not_take_is_written_later() -> None:
    world = Set()
    async with world.working() as runtime:
        world.disk.fails = 3
        await runtime.register(facts("a"))
        while not world.disk.snapshots:
            await runtime.routes_changed.wait(0.01)
    assert world.disk.snapshots == [runtime.cluster._snapshot]


async def test_a_full_disk_keeps_no_node_from_registering_and_loses_no_handle() -> None:
    world = Set()
    async with world.working() as runtime:
        world.disk.full = True
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        await until_ready(runtime)
        world.mesh.told.put_nowait(NodeGone("b", "killed"))
        while runtime.cluster.routes()[1]:
            await runtime.routes_changed.wait(0.01)
        world.disk.full = False
        while not world.disk.taken:
            await runtime.routes_changed.wait(0.01)
    assert world.disk.saved(f"{HANDLE_PREFIX}a") == ["handle-a"]
    assert world.disk.saved(f"{HANDLE_PREFIX}b") == [None]


async def test_what_a_node_asks_for_is_begun_though_its_caller_goes_away() -> None:
    world = Set()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        world.disk.free.clear()
        registering = asyncio.create_task(runtime.register(facts("b")))
        await runtime.routes_changed.wait(0.01)
        registering.cancel()
        world.disk.free.set()
        await until_ready(runtime)
    assert world.mesh.formed == ["f1"]


async def test_a_formation_that_was_dropped_while_it_waited_is_not_formed() -> None:
    world = Set()
    async with world.working() as runtime:
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        assert await until_ready(runtime) == "f1"
        world.mesh.dissolved.clear()
        for incarnation in ("second", "third"):
            await runtime.register(facts("b", incarnation))
            await world.mesh.dissolving.wait()
            while runtime.cluster.pipelines_view()[0].formation_id == "":
                await runtime.routes_changed.wait(0.01)
        world.mesh.dissolved.set()
        assert await until_ready(runtime) == "f3"
    assert world.mesh.formed == ["f1", "f3"]


async def test_what_is_found_of_a_process_says_nothing_of_the_next_of_its_name() -> None:
    world = Set()
    async with world.working() as runtime:
        world.mesh.loadable.clear()
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        runtime.suspect("b")
        await world.mesh.probing.wait()
        await runtime.register(facts("b", "second"))
        while world.mesh.loads < 3:
            await runtime.routes_changed.wait(0.01)
        world.mesh.refused.set()
        for _ in range(5):
            await runtime.routes_changed.wait(0.01)
        world.mesh.loadable.set()
        await until_ready(runtime)


async def test_no_connection_outlives_the_node_at_its_other_end() -> None:
    world = Set()
    async with world.working() as runtime:
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        await until_ready(runtime)
        await runtime.register(replace(facts("b", "second"), address="127.0.0.1:2"))
        while world.mesh.loads < 3:
            await runtime.routes_changed.wait(0.01)
        await runtime.register(replace(facts("b", "third"), address="127.0.0.1:3"))
        while len(world.mesh.formed) < 2:
            await runtime.routes_changed.wait(0.01)
        assert world.mesh.addresses == {"127.0.0.1:1", "127.0.0.1:3"}


async def test_a_notice_given_twice_at_once_is_one_event() -> None:
    world = Set()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        world.disk.free.clear()
        registering = asyncio.create_task(runtime.register(facts("b")))
        told = [asyncio.create_task(runtime.interrupt("a", 60.0, False)) for _ in range(2)]
        for _ in range(5):
            await runtime.routes_changed.wait(0.01)
        world.disk.free.set()
        first, second = await asyncio.gather(*told)
        await registering
    assert first == second


async def test_whoever_can_give_notice_is_the_one_that_gives_it() -> None:
    world = Set()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        await runtime.interrupt("a", 60.0, False)
        (deadline_s,) = runtime.cluster.deadlines_s().values()
    ((node_id, given_s),) = world.mesh.noticed
    assert (node_id, given_s) == ("a", pytest.approx(deadline_s))


async def test_where_nobody_gives_notice_what_the_operator_says_counts() -> None:
    world = Set()
    world.mesh.capabilities = Capabilities()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        await runtime.interrupt("a", 60.0, False)
        assert list(runtime.cluster.deadlines_s()) == ["a"]
    assert world.mesh.noticed == []


async def test_a_later_notice_is_the_one_that_was_given_before() -> None:
    world = Set()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        first = await runtime.interrupt("a", 60.0, False)
        assert await runtime.interrupt("a", 90.0, False) == first
        assert (await runtime.interrupt("a", 30.0, False)).number > first.number


async def test_a_notice_is_given_again_after_a_restart() -> None:
    before, after = Set(), Set()
    async with before.working() as runtime:
        await runtime.register(facts("a"))
        await runtime.interrupt("a", 60.0, False)
        (deadline_s,) = runtime.cluster.deadlines_s().values()
    async with after.working(runtime.cluster._snapshot):
        assert [node_id for node_id, _ in after.mesh.noticed] == ["a"]
    assert after.mesh.noticed[0][1] == pytest.approx(deadline_s, abs=0.01)


@pytest.mark.parametrize("deadline_s", [math.nan, math.inf])
async def test_a_notice_without_a_time_counts_for_nothing(deadline_s: float) -> None:
    world = Set()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        world.mesh.told.put_nowait(NodeNotice("a", deadline_s, NoticeKind.SPOT))
        world.mesh.told.put_nowait(NodeNotice("nobody", 1.0, NoticeKind.SPOT))
        await runtime.interrupt("a", 60.0, False)
        assert len(runtime.cluster.deadlines_s()) == 1


async def test_what_was_launched_before_is_found_before_it_is_asked_for_anything() -> None:
    state, world = State(SETTINGS.basis, Goals.of(GOAL)), Set()
    state.nodes["a"] = Node("a", SHAPE, 0.0, facts=facts("a"), leaving=True)
    async with world.working(to_json(state, 0.0), (f"{HANDLE_PREFIX}a", "handle-a")):
        await world.mesh.ending.wait()
    assert (world.mesh.adopted, world.mesh.ended) == (["a"], ["a"])


async def test_a_provider_that_gives_no_notice_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Set()
    monkeypatch.setattr(controller_runtime, "_NOTICED_WITHIN_S", 0.02)
    monkeypatch.setattr(world.mesh, "give_notice", lambda *_: None)
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        with pytest.raises(Unavailable, match="no notice"):
            await runtime.interrupt("a", 60.0, False)


async def test_a_node_whose_handle_was_lost_is_of_its_offer_all_the_same() -> None:
    world = Set()
    world.mesh.sold = "spot-a"
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        assert runtime.market.offer_id_of("a") == "spot-a"
        world.mesh.told.put_nowait(NodeGone("a", "killed"))
        while runtime.market.running("spot-a"):
            await runtime.routes_changed.wait(0.01)
