"""Which pipelines begin generations, and which go on with them."""

from dataclasses import replace

import pytest

from services.common.generation import LayerRange
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import FormPipeline, LoadStage
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.strategy import STRATEGIES
from tests.unit.controller.small_cluster import (
    PATIENT,
    Prompt,
    all_of,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
)

PREFILL, DECODE, BOTH = PipelinePhase.PREFILL, PipelinePhase.DECODE, PipelinePhase.BOTH
WHOLE = LayerRange(0, 30)
NODES = ("node-1", "node-2")


def plan_of(*phases: PipelinePhase, number: int = 1) -> Plan:
    """A pipeline on one node for each phase."""
    plan = planned(*({node: WHOLE} for node in NODES[: len(phases)]), number=number)
    (deployment,) = plan.deployments
    pipelines = zip(deployment.pipelines, phases, strict=True)
    split = tuple(replace(pipeline, phase=phase) for pipeline, phase in pipelines)
    return replace(plan, deployments=(replace(deployment, pipelines=split),))


def serving(*classes: str, settings: ClusterSettings = PATIENT) -> Prompt:
    """Both pipelines do both, of stages of these numerics classes."""
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    for node in NODES:
        cluster.register(facts(node), 0.0)
    cluster.plan_ready(plan_of(BOTH, BOTH), 0.0)
    for node, numerics in zip(NODES, classes or ("a", "a"), strict=True):
        form = one_of(loaded(cluster, node, WHOLE, 0.0, numerics_class=numerics), FormPipeline)
        cluster.formed(form.formation_id, 0.0)
    assert [route.hands_on for route in cluster.routes()[1]] == [False, False]
    return cluster


def begins(cluster: Prompt) -> dict[str, bool]:
    """Pipelines that take new requests, and whether they hand them on."""
    return {route.pipeline_id: route.hands_on for route in cluster.routes()[1]}


def test_a_plan_of_other_phases_changes_routes_and_nothing_else() -> None:
    cluster = serving()
    before = [view.formation_id for view in cluster.view.pipelines()]
    actions = cluster.plan_ready(plan_of(PREFILL, DECODE, number=2), 1.0)
    assert not all_of(actions, LoadStage)
    assert not all_of(actions, FormPipeline)
    assert begins(cluster) == {"pipeline-1": True}
    assert cluster.handing_over() == (before[1],), "its readers stay"
    heads = cluster.view.heads(1.0)
    assert [(head.takes_new, head.phase) for head in heads] == [(True, PREFILL), (True, DECODE)]
    cluster.plan_ready(plan_of(DECODE, PREFILL, number=3), 2.0)
    assert begins(cluster) == {"pipeline-2": True}
    assert [view.formation_id for view in cluster.view.pipelines()] == before
    assert [view.phase for view in cluster.view.pipelines()] == [DECODE, PREFILL]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ((PREFILL, BOTH), {"pipeline-1": True, "pipeline-2": False}),
        ((BOTH, DECODE), {"pipeline-1": False}),
        ((PREFILL, PREFILL), {"pipeline-1": False, "pipeline-2": False}),
        ((DECODE, DECODE), {"pipeline-1": False, "pipeline-2": False}),
    ],
)
def test_who_lacks_the_other_phase_does_it_too(
    phases: tuple[PipelinePhase, ...], expected: dict[str, bool]
) -> None:
    cluster = serving()
    cluster.plan_ready(plan_of(*phases, number=2), 1.0)
    assert begins(cluster) == expected


@pytest.mark.parametrize(("lost", "left"), [("node-1", "pipeline-2"), ("node-2", "pipeline-1")])
def test_who_has_lost_its_partners_does_the_whole(lost: str, left: str) -> None:
    cluster = serving()
    cluster.plan_ready(plan_of(PREFILL, DECODE, number=2), 1.0)
    cluster.node_gone(lost, f"i-{lost}", "killed", 2.0)
    assert begins(cluster) == {left: False}


def test_other_arithmetic_is_no_partner() -> None:
    cluster = serving("a", "b")
    cluster.plan_ready(plan_of(PREFILL, DECODE, number=2), 1.0)
    assert begins(cluster) == {"pipeline-1": False, "pipeline-2": False}


def test_without_migration_nothing_is_handed_on() -> None:
    """The next head would begin again."""
    cluster = serving(settings=replace(PATIENT, strategy=STRATEGIES["concurrent-init"]))
    cluster.plan_ready(plan_of(PREFILL, DECODE, number=2), 1.0)
    assert begins(cluster) == {"pipeline-1": False}


def test_phases_outlive_the_controller() -> None:
    cluster = serving()
    cluster.plan_ready(plan_of(PREFILL, DECODE, number=2), 1.0)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 5.0, 5.0)
    again.start(5.0)
    assert [view.phase for view in again.view.pipelines()] == [PREFILL, DECODE]
