from __future__ import annotations

import asyncio
import math

import pytest

from services.common.errors import Unavailable
from services.controller import fleet
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.market import (
    Capabilities,
    NodeGone,
    NodeNotice,
    NoticeKind,
)
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notes import Notes
from services.controller.core.cluster.state import State
from services.controller.fleet import HANDLE_PREFIX
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
        assert len(runtime.cluster.deadlines_s()) == 1


async def test_what_was_launched_before_is_found_before_it_is_asked_for_anything() -> None:
    state, world = State(SETTINGS.basis, Liveness(SETTINGS, 0.0)), Set()
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
