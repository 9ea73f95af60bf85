from __future__ import annotations

import asyncio
from dataclasses import replace

from services.controller.core.cluster.actions import Action
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.market import (
    NodeGone,
)
from services.controller.core.cluster.notes import Notes
from services.controller.fleet import HANDLE_PREFIX
from tests.unit.controller.small_cluster import GOAL
from tests.unit.controller.small_runtime import SETTINGS, Set, facts, until_ready


async def test_an_older_note_never_follows_a_newer_one() -> None:
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
        await runtime.settle()
    assert {"cluster", "plan", "node/a", "node/b", "pipeline/pipeline-1"} <= world.disk.keys
    for key in world.disk.keys - {f"{HANDLE_PREFIX}a", f"{HANDLE_PREFIX}b"}:
        notes = world.disk.saved(key)
        assert len(notes) == len(set(notes)), key
    state = Notes(0.0).recover(world.disk.standing, Goals.of(GOAL), Liveness(SETTINGS, 0.0), 0.0)
    assert sorted(state.nodes) == ["a", "b"]
    assert state.pipelines["pipeline-1"].is_ready


async def test_notes_the_journal_did_not_take_are_written_later_all_at_once() -> None:
    world = Set()
    async with world.working() as runtime:
        world.disk.fails = 3
        await runtime.register(facts("a"))
        while not world.disk.keys:
            await runtime.routes_changed.wait(0.01)
    (write,) = [keys for keys in world.disk.writes if "cluster" in keys]
    assert {"cluster", "node/a"} <= write


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
        while not world.disk.keys:
            await runtime.routes_changed.wait(0.01)
    assert world.disk.saved(f"{HANDLE_PREFIX}a") == ["handle-a"]
    assert world.disk.saved(f"{HANDLE_PREFIX}b") == [None]


async def test_nobody_waits_for_the_next_look_at_the_time() -> None:
    """What happens is acted upon at once, and who waits for it is told, though nothing is due."""
    world = Set(replace(SETTINGS, glance_s=1000.0))
    async with world.working() as runtime:
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        await until_ready(runtime)
        for _ in range(3):
            await runtime.settle()
        await runtime.interrupt("a", 600.0, False)
        await runtime.interrupt("a", 600.0, False)


async def test_what_came_in_one_turn_is_one_question_and_one_write() -> None:
    world = Set(replace(SETTINGS, expected_nodes=20))
    async with world.working() as runtime:
        before = len(world.disk.writes)
        asked = 0
        advance = runtime.cluster.advance

        def counted(now_s: float) -> list[Action]:
            nonlocal asked
            actions = advance(now_s)
            asked += bool(actions)
            return actions

        runtime.cluster.advance = counted  # type: ignore[method-assign]
        await asyncio.gather(*(runtime.register(facts(f"n{number}")) for number in range(19)))
        assert asked <= 2
        assert len([keys for keys in world.disk.writes[before:] if keys]) <= 2


async def test_what_came_while_the_disk_was_waited_for_is_one_write() -> None:
    world = Set(replace(SETTINGS, expected_nodes=20))
    async with world.working() as runtime:
        await runtime.settle()
        world.disk.free.clear()
        before, registering = len(world.disk.writes), []
        for number in range(9):
            registering.append(asyncio.create_task(runtime.register(facts(f"n{number}"))))
            await runtime.routes_changed.wait(0.01)
        world.disk.free.set()
        await asyncio.gather(*registering)
        assert len([keys for keys in world.disk.writes[before:] if keys]) == 2


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


async def test_nothing_is_carried_out_while_another_controller_may_lead() -> None:
    world = Set()
    async with world.working() as runtime:
        world.disk.followed = True
        registering = [asyncio.create_task(runtime.register(facts(name))) for name in "ab"]
        while not world.disk.keys:
            await runtime.routes_changed.wait(0.01)
        for _ in range(20):
            await runtime.routes_changed.wait(0.01)
        assert (world.mesh.loads, world.mesh.formed) == (0, [])
        world.disk.followed = False
        await asyncio.gather(*registering)
        await until_ready(runtime)
    assert len(world.mesh.formed) == 1
