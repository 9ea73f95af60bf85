"""What a plan would change is what happens when it is adopted; asking changes nothing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest

from services.common.generation import LayerRange, ModelRef
from services.controller.core.cluster.actions import LaunchNode, TerminateNode
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import Plan
from tests.unit.controller.core.cluster.test_changes import carry_out, running, serving
from tests.unit.controller.small_cluster import BACK, FRONT, PATIENT, SETTINGS, planned, ready

WHOLE = LayerRange(0, 30)


def test_what_stays_comes_and_goes() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, {"c": WHOLE}, idle=("d",))
    state = cluster._state
    before = deepcopy((state.plan, state.nodes, state.pipelines, state.launched, state.named))
    plan = planned({"d": WHOLE}, {"a": FRONT, "b": BACK}, number=2)
    found = cluster.view.difference(plan, 1.0)
    assert before == (state.plan, state.nodes, state.pipelines, state.launched, state.named)
    assert cluster.tick(1.0) == []
    assert found.kept == ("pipeline-1",)
    assert found.gone == ("pipeline-2",)
    (stage,) = found.pipelines["pipeline-3"]
    assert (stage.node_id, stage.layers, stage.lacks) == ("d", WHOLE, (WHOLE,))
    assert (found.launched, found.freed, found.idle) == ({}, (), ("c",))
    carry_out(cluster, cluster.plan_ready(plan, 1.0), 1.0)
    assert running(cluster).keys() == found.pipelines.keys()


def test_nodes_that_are_launched_and_end_are_those_that_are_told_of() -> None:
    cluster = ready(PATIENT)
    plan = planned({"node-1": WHOLE}, {"?1": WHOLE}, number=2)
    found = cluster.view.difference(plan, 1.0)
    assert list(found.launched) == ["node-3"]
    assert found.freed == ("node-2",)
    done = carry_out(cluster, cluster.plan_ready(plan, 1.0), 1.0)
    assert [a.node_id for a in done if isinstance(a, LaunchNode)] == ["node-3"]
    assert [a.node_id for a in done if isinstance(a, TerminateNode)] == ["node-2"]
    assert running(cluster) == {
        name: [(stage.node_id, stage.layers) for stage in stages]
        for name, stages in found.pipelines.items()
    }


@pytest.mark.parametrize(
    ("held", "lacks"),
    [
        (LayerRange(0, 18), (LayerRange(18, 30),)),
        (LayerRange(10, 20), (LayerRange(0, 10), LayerRange(20, 30))),
        (WHOLE, ()),
        (None, (WHOLE,)),
    ],
)
def test_a_node_lacks_what_it_does_not_hold(
    held: LayerRange | None, lacks: tuple[LayerRange, ...]
) -> None:
    cluster = ready(PATIENT)
    node = cluster._state.nodes["node-1"]
    node.held = None if held is None else HeldStage(SETTINGS.first.model, held, 1)
    (stage,) = cluster.view.difference(planned({"node-1": WHOLE}, number=2), 1.0).pipelines[
        "pipeline-2"
    ]
    assert stage.lacks == lacks


@pytest.mark.parametrize("other", [(SETTINGS.first.model, 2), (ModelRef("m", "other"), 1)])
def test_other_slices_and_other_models_are_no_layers(other: tuple[ModelRef, int]) -> None:
    cluster = ready(PATIENT)
    cluster._state.nodes["node-1"].held = HeldStage(other[0], WHOLE, other[1])
    (stage,) = cluster.view.difference(planned({"node-1": WHOLE}, number=2), 1.0).pipelines[
        "pipeline-2"
    ]
    assert stage.lacks == (WHOLE,)


def test_a_stage_that_nobody_can_be_found_for_has_no_node() -> None:
    cluster = serving({"a": FRONT, "b": BACK})
    plan = planned({"a": FRONT, "b": BACK}, {"?1": WHOLE}, number=2)
    found = cluster.view.difference(plan, 1.0)
    (stage,) = found.pipelines["pipeline-2"]
    assert (stage.node_id, found.launched) == ("", {})


def test_the_same_plan_again_changes_nothing() -> None:
    cluster = ready(PATIENT)
    assert isinstance(cluster.plan, Plan)
    found = cluster.view.difference(replace(cluster.plan, number=2), 1.0)
    assert (found.kept, found.gone) == (("pipeline-1",), ())
    assert (found.launched, found.freed, found.idle) == ({}, (), ())
