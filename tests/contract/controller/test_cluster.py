from __future__ import annotations

from typing import Any

from shuntserve.controller.v1 import controller_pb2 as pb

World = Any


async def test_nodes_become_two_pipelines_of_uneven_stages(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    assert len({route.formation_id for route in routes}) == 2
    status = await world.status()
    layers = [[(s.layers.start, s.layers.end) for s in p.stages] for p in status.pipelines]
    assert layers == [[(0, 4), (4, 6)]] * 2
    assert {node.state for node in status.nodes} == {pb.NODE_STATE_READY}
    assert {p.state for p in status.pipelines} == {pb.PIPELINE_STATE_READY}
    heads = {world.head(route).spec.node_id for route in routes}
    assert heads == {p.stages[0].node_id for p in status.pipelines}
    assert all(route.max_positions == 64 * 16 for route in routes)
