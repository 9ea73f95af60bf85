from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from services.common.errors import Unavailable
from services.common.machine import MachineFacts
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller import fleet
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.market import (
    Capabilities,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notes import Notes
from services.controller.core.cluster.state import State
from services.controller.fleet import HANDLE_PREFIX
from services.controller.journal.journal import LoggedEvent
from services.controller.runtime import ClusterRuntime
from tests.unit.controller.small_cluster import GOAL
from tests.unit.controller.small_runtime import SETTINGS, SHAPE, Set, facts


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
        (deadline_s,) = runtime.cluster.view.deadlines_s().values()
    ((node_id, given_s),) = world.mesh.noticed
    assert (node_id, given_s) == ("a", pytest.approx(deadline_s))


async def test_where_nobody_gives_notice_what_the_operator_says_counts() -> None:
    world = Set()
    world.mesh.capabilities = Capabilities()
    async with world.working() as runtime:
        await runtime.register(facts("a"))
        await runtime.interrupt("a", 60.0, False)
        assert list(runtime.cluster.view.deadlines_s()) == ["a"]
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
        (deadline_s,) = runtime.cluster.view.deadlines_s().values()
    async with after.working(before.disk.standing):
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
        assert len(runtime.cluster.view.deadlines_s()) == 1


async def test_what_was_launched_before_is_found_before_it_is_asked_for_anything() -> None:
    state, world = State(SETTINGS.basis, Goals.of(GOAL), Liveness(SETTINGS, 0.0)), Set()
    state.put(Node("a", SHAPE, 0.0, facts=facts("a"), leaving=True))
    notes = {key: note for key, note in Notes(0.0).changes(state).items() if note is not None}
    async with world.working({**notes, f"{HANDLE_PREFIX}a": "handle-a"}):
        await world.mesh.ending.wait()
    assert (world.mesh.adopted, world.mesh.ended) == (["a"], ["a"])


async def test_a_provider_that_gives_no_notice_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Set()
    monkeypatch.setattr(fleet, "_NOTICED_WITHIN_S", 0.02)
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


BOUGHT = Offer("spot", "big", SHAPE, count=2, price_per_hour=1.0)


def heard(world: Set, *kinds: str) -> list[LoggedEvent]:
    events = [item for item in world.disk.taken if isinstance(item, LoggedEvent)]
    return [event for event in events if event.kind in kinds]


async def told(runtime: ClusterRuntime, world: Set, event: ProviderEvent) -> None:
    world.mesh.told.put_nowait(event)
    while not world.mesh.told.empty():
        await runtime.changed.wait(0.01)
    await runtime.settle()


async def test_a_node_that_is_another_than_was_offered_is_told_and_its_offer_left_alone() -> None:
    world = Set()
    world.mesh.sold = "spot"
    async with world.working() as runtime:
        await told(runtime, world, OffersChanged((replace(BOUGHT, shape=NodeShape(1, 9.0)),)))
        await runtime.register(facts("a"))
        await runtime.settle()
        assert list(runtime.market.shut()) == ["spot"]
        assert runtime.market.running("spot") == 1, "it is paid for"
    (event,) = heard(world, "node_differs")
    assert event.node_id == "a"
    assert event.attributes["offer"] == "spot"


async def test_a_node_that_is_what_was_offered_is_no_news() -> None:
    world = Set()
    world.mesh.sold = "spot"
    async with world.working() as runtime:
        await told(runtime, world, OffersChanged((BOUGHT,)))
        await runtime.register(facts("a"))
        assert runtime.market.shut() == {}
    assert heard(world, "node_differs") == []


async def test_a_node_of_another_type_than_was_offered_is_told() -> None:
    world = Set()
    world.mesh.sold = "spot"
    async with world.working() as runtime:
        await told(runtime, world, OffersChanged((BOUGHT,)))
        await runtime.register(replace(facts("a"), machine=MachineFacts(instance_type="small")))
        await runtime.settle()
        assert list(runtime.market.shut()) == ["spot"]
    (event,) = heard(world, "node_differs")
    assert event.attributes["offered"].startswith("big, ")
    assert event.attributes["found"].startswith("small, ")


@pytest.mark.parametrize("declares", [True, False])
async def test_only_a_provider_that_declares_has_declared_anything(declares: bool) -> None:
    world = Set()
    world.mesh.capabilities = Capabilities(declares=declares)
    machine = MachineFacts(cores=2.0).declare(MachineFacts(pool="a", memory_bytes=7))
    async with world.working() as runtime:
        await runtime.register(replace(facts("a"), machine=machine))
        node = runtime.cluster.view.node("a")
    assert node is not None
    assert node.machine == (machine if declares else MachineFacts(cores=2.0))


async def test_a_process_that_the_provider_did_not_start_declares_nothing() -> None:
    world = Set()
    world.mesh.capabilities = Capabilities(declares=True)
    world.mesh.stranger = True
    machine = MachineFacts(cores=2.0).declare(MachineFacts(pool="a"))
    async with world.working() as runtime:
        await runtime.register(replace(facts("a"), machine=machine))
        node = runtime.cluster.view.node("a")
    assert node is not None
    assert node.machine == MachineFacts(cores=2.0)


async def test_a_million_absurd_offers_are_looked_at_in_part_and_told_once() -> None:
    world = Set()
    absurd = tuple(
        replace(BOUGHT, offer_id=f"o{index}", price_per_hour=price)
        for index, price in enumerate((math.nan, -1.0, 0.0, math.inf))
    )
    async with world.working() as runtime:
        for _ in range(3):
            await told(runtime, world, OffersChanged((BOUGHT, *absurd, *(BOUGHT,) * 1_000_000)))
        assert [offer.offer_id for offer in runtime.market.offers()] == ["spot"]
        assert len(heard(world, "offers_dropped")) == 1
        await told(runtime, world, OffersChanged(absurd))
        assert runtime.market.offers() == ()
    assert [event.attributes["field"] for event in heard(world, "offers_dropped")] == [
        "price_per_hour"
    ] * 2


async def test_a_killed_node_is_paid_for_no_more_whatever_its_provider_says() -> None:
    world = Set()
    async with world.working() as runtime:
        await told(runtime, world, OffersChanged((BOUGHT,)))
        runtime.market.found("a", "spot")
        await runtime.register(facts("a"))
        await runtime.interrupt("a", 0.0, True)
        while runtime.market.running("spot"):
            await runtime.changed.wait(0.01)
    assert "a" in world.mesh.ended
