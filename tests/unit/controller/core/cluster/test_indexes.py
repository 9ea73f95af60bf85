"""What is at rest lacks nothing: whoever looks at it all finds no more to do."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import Action, FormPipeline
from services.controller.core.cluster.cluster import Cluster
from tests.unit.controller.core.cluster.test_deadlines import World
from tests.unit.controller.small_cluster import (
    PATIENT,
    SHAPE,
    Prompt,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
    ready,
)


def looking_at_all(core: Cluster) -> Cluster:
    """The same cluster without its indexes."""
    other = deepcopy(core)
    state = other._state
    indexes = state.indexes

    def seatless() -> list[object]:
        seats = [s for p in state.pipelines.values() if not p.retiring for s in p.seats]
        seated = {node_id for seat in seats for node_id in seat.node_ids}
        return [node for name, node in state.nodes.items() if name not in seated]

    indexes.restless_pipelines = lambda: list(state.pipelines.values())  # type: ignore[method-assign]
    indexes.restless_nodes = lambda: list(state.nodes.values())  # type: ignore[method-assign]
    indexes.seatless = seatless  # type: ignore[method-assign, assignment]
    return other


class Compared(Prompt):
    """Does what it does with and without indexes."""

    def tick(self, now_s: float) -> list[Action]:
        slowly = looking_at_all(self.core).advance(now_s)
        quickly = super().tick(now_s)
        assert quickly == slowly
        return quickly


@pytest.mark.parametrize("seed", range(20))
def test_nobody_finds_more_to_do_by_looking_at_all(seed: int) -> None:
    world = World(seed)
    world.cluster.__class__ = Compared
    for _ in range(60):
        world.turn()


def test_a_cluster_that_serves_is_at_rest() -> None:
    cluster = ready(PATIENT)
    indexes = cluster._state.indexes
    assert indexes.restless_pipelines() == indexes.restless_nodes() == indexes.seatless() == []
    cluster.interrupt("node-2", 20.0, False, 1.0)
    assert [p.pipeline_id for p in indexes.restless_pipelines()] == ["pipeline-1"]
    assert [n.node_id for n in indexes.restless_nodes()] == ["node-2", "node-3"]
    assert [p.pipeline_id for p in indexes.pipelines_of("node-3")] == ["pipeline-1"]
    for view in cluster.view.nodes():
        assert cluster.view.node(view.node_id) == view
    assert cluster.view.node("nobody") is None


@pytest.mark.parametrize("pipelines", [3, 60])
def test_a_loss_stirs_one_pipeline_however_many_there_are(pipelines: int) -> None:
    whole = LayerRange(0, 30)
    names = [f"node-{number}" for number in range(1, pipelines + 1)]
    settings = replace(PATIENT, initial=(SHAPE,) * pipelines, expected_nodes=pipelines)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    for name in names:
        cluster.register(facts(name), 0.0)
    cluster.plan_ready(planned(*({name: whole} for name in names)), 0.0)
    for name in names:
        form = one_of(loaded(cluster, name, whole, 0.0), FormPipeline)
        cluster.formed(form.formation_id, 0.0)
    cluster.node_gone("node-2", "i-node-2", "exit", 11.0)
    indexes = cluster._state.indexes
    assert [p.pipeline_id for p in indexes.restless_pipelines()] == ["pipeline-2"]
