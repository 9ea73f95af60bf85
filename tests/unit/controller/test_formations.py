from __future__ import annotations

from tests.unit.controller.small_runtime import Set, facts, until_ready


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
            while runtime.cluster.view.pipelines()[0].formation_id == "":
                await runtime.routes_changed.wait(0.01)
        world.mesh.dissolved.set()
        assert await until_ready(runtime) == "f3"
    assert world.mesh.formed == ["f1", "f3"]


async def test_what_a_node_has_in_its_store_alone_is_asked_for_again() -> None:
    world = Set()
    world.mesh.without_room = 2
    async with world.working() as runtime:
        for node_id in ("a", "b"):
            await runtime.register(facts(node_id))
        await until_ready(runtime)
    assert world.mesh.loads == 4
