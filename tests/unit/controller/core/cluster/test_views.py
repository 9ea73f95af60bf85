from __future__ import annotations

from dataclasses import replace

from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import FormPipeline, NodeState, PipelineState
from services.controller.core.cluster.views import NodeView, PipelineView, StageView
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PATIENT,
    facts,
    one_of,
    planned,
    ready,
    replaced,
)


def test_a_node_is_shown_with_its_process_and_its_place() -> None:
    cluster = ready(PATIENT)
    its = facts("node-2")
    shown = NodeView(
        "node-2",
        7,
        "i-node-2",
        NodeState.READY,
        "pipeline-1",
        1,
        its.address,
        its.machine,
        "native",
        "m",
        "",
    )
    assert cluster.view.nodes()[1] == cluster.view.node("node-2") == shown
    assert cluster.view.node("nobody") is None


def test_a_pipeline_is_shown_with_whoever_sits_in_it() -> None:
    cluster = ready(PATIENT)
    stages = (StageView("node-1", FRONT, 1, "native"), StageView("node-2", BACK, 1, "native"))
    (shown,) = cluster.view.pipelines()
    assert shown == PipelineView(
        "pipeline-1", PipelineState.READY, "f1", stages, PipelinePhase.BOTH
    )
    cluster.interrupt("node-2", 60.0, False, 1.0)
    assert [view.state for view in cluster.view.pipelines()] == [PipelineState.DRAINING]
    cluster.node_gone("node-2", "i-node-2", "killed", 2.0)
    (shown,) = cluster.view.pipelines()
    assert (shown.state, shown.formation_id) == (PipelineState.LOADING, "")
    assert [stage.backend for stage in shown.stages] == ["native", ""]
    replaced(cluster, 3.0)
    assert [stage.node_id for stage in cluster.view.pipelines()[0].stages] == ["node-1", "node-3"]


def test_a_model_is_down_for_as_long_as_its_pipeline_that_has_not_served_for_longest() -> None:
    cluster = ready(PATIENT)
    assert cluster.view.down_s(5.0) == {"m": 0.0}
    cluster.node_gone("node-2", "i-node-2", "killed", 6.0)
    assert cluster.view.down_s(8.5) == {"m": 2.5}
    form = one_of(replaced(cluster, 9.0), FormPipeline)
    cluster.formed(form.formation_id, 10.0)
    assert cluster.view.down_s(11.0) == {"m": 0.0}


def test_looking_changes_nothing() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 60.0, False, 1.0)
    view, notes = cluster.view, dict(cluster.saved)
    view.difference(planned({"node-1": FRONT, "node-2": BACK}, number=2), 1.0)
    view.plan_question(cluster.goals)
    view.heads(1.0)
    assert cluster.tick(1.0) == []
    assert cluster.saved == notes


def test_a_view_is_of_the_moment_in_which_it_is_asked() -> None:
    cluster = ready(replace(PATIENT, can_launch=False))
    view = cluster.view
    assert (view.busy, view.deadlines_s()) == (False, {})
    cluster.interrupt("node-2", 60.0, False, 1.0)
    assert view.deadlines_s() == {"node-2": 61.0}
    assert cluster.view.addresses() == {"i-node-1:1", "i-node-2:1"}
