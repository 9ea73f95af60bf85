"""A pipeline has one backend: in plans of operators, and for whoever takes a seat."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange
from services.common.nodes import NodeFacts, NodeShape
from services.controller.core.cluster.actions import LaunchNode, LoadStage
from services.controller.core.cluster.applying import operators_plan
from services.controller.core.cluster.backends import KnownShapes
from services.controller.core.cluster.goals import Goal, Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.pipeline import Seat
from services.controller.core.cluster.plan import (
    ANY_SHAPE,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.spares import suits
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    GOAL,
    PAIR,
    PATIENT,
    SHAPE,
    Prompt,
    all_of,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
    ready,
    said,
)

VLLM = replace(SHAPE, backend="vllm")
KNOWN = KnownShapes({"n1": SHAPE, "v1": VLLM, "v2": VLLM}, {"cheap": VLLM})
BOTH = Goals.of(Goal(replace(GOAL.facts, backends=("native", "vllm"))))


def vllm(node_id: str, incarnation: str = "") -> NodeFacts:
    return replace(facts(node_id, incarnation), shape=VLLM)


def text_of(*stages: dict[str, Any]) -> str:
    cuts = [[0, 18], [18, 30]]
    made = [{"layers": cuts[place], **stage} for place, stage in enumerate(stages)]
    pipeline = {"id": "p", "stages": made}
    deployments = [{"model": "m", "pipelines": [pipeline]}]
    return json.dumps({"version": 1, "deployments": deployments})


def backends_of(plan: Plan) -> list[str]:
    return [stage.shape.backend for stage in plan.stages()]


@pytest.mark.parametrize(
    ("stages", "backend"),
    [
        (({"node": "v1"}, {"node": "v2"}), "vllm"),
        (({}, {"node": "v2"}), "vllm"),
        (({"offer": "cheap"}, {}), "vllm"),
        (({}, {"shape": {"memory_bytes": 7, "backend": "vllm"}}), "vllm"),
        (({"node": "v1", "shape": {"backend": "native"}}, {}), "vllm"),  # as the node has it
        (({"node": "gone", "shape": {"backend": "vllm"}}, {}), "vllm"),
        (({}, {}), "native"),
    ],
)
def test_a_pipeline_has_the_backend_that_one_of_its_stages_names(
    stages: tuple[dict[str, Any], ...], backend: str
) -> None:
    assert backends_of(operators_plan(text_of(*stages), 2, BOTH, KNOWN)) == [backend] * 2


def test_where_nothing_is_named_it_has_one_that_is_there_and_serves_the_model() -> None:
    only = Goals.of(Goal(replace(GOAL.facts, backends=("vllm",))))
    assert backends_of(operators_plan(text_of({}, {}), 2, only, KNOWN)) == ["vllm"] * 2
    assert backends_of(operators_plan(text_of({}, {}), 2, BOTH, KnownShapes())) == ["native"] * 2


def test_stages_of_several_backends_are_refused_by_their_place() -> None:
    with pytest.raises(InvalidArgument, match=r"with vllm, stages\[0\] with native: rows do") as no:
        operators_plan(text_of({"node": "n1"}, {"node": "v1"}), 2, BOTH, KNOWN)
    assert no.value.field == "deployments[0].pipelines[0].stages[1]"
    only = Goals.of(Goal(replace(GOAL.facts, backends=("vllm",))))
    with pytest.raises(InvalidArgument, match="native cannot serve the model; vllm can") as no:
        operators_plan(text_of({"node": "n1"}, {}), 2, only, KNOWN)
    assert no.value.field == "deployments[0].pipelines[0].stages"


def test_no_plan_has_a_pipeline_of_two() -> None:
    stages = (PlannedStage(FRONT, shape=SHAPE), PlannedStage(BACK, shape=VLLM))
    for shapes, told in ((stages, "compute with native and vllm"), (stages[:1], "native or vllm")):
        if len(shapes) == 1:
            shapes = (PlannedStage(LayerRange(0, 30), shape=NodeShape(1, 1.0, backend="tgi")),)
        with pytest.raises(InvalidArgument, match=told):
            Plan(1, (Deployment(GOAL.model, "x", (PlannedPipeline("p", shapes, 1.0),)),))


def test_a_seat_is_for_nodes_of_its_pipelines_backend() -> None:
    settings = replace(PATIENT, can_launch=False)
    cluster = ready(settings)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    assert all_of(cluster.register(vllm("node-9"), 2.0), LoadStage) == []
    load = one_of(cluster.register(facts("node-3"), 3.0), LoadStage)
    assert (load.node_id, load.layers) == ("node-3", BACK)


def test_what_is_lost_is_replaced_by_a_node_of_the_same_backend() -> None:
    cluster = two_pipelines()
    for node_id, backend in (("node-2", "native"), ("node-4", "vllm")):
        gone = cluster.node_gone(node_id, f"i-{node_id}", "exit", 5.0)
        assert one_of(gone, LaunchNode).shape.backend == backend


def two_pipelines(**settings: Any) -> Prompt:
    """One of node-1 and node-2, native; one of node-3 and node-4 of vLLM. Both stand."""
    chosen = replace(PATIENT, initial=(SHAPE, SHAPE, VLLM, VLLM), expected_nodes=4, **settings)
    cluster = Prompt(chosen, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    for told in (facts("node-1"), facts("node-2"), vllm("node-3"), vllm("node-4")):
        cluster.register(told, 0.0)
    plan = planned(PAIR, {"node-3": FRONT, "node-4": BACK})
    (deployment,) = plan.deployments
    one, other = deployment.pipelines
    other = replace(other, stages=tuple(replace(s, shape=VLLM) for s in other.stages))
    cluster.plan_ready(Plan(1, (replace(deployment, pipelines=(one, other)),)), 0.0)
    for number, name in ((1, "a"), (3, "b")):
        loaded(cluster, f"node-{number}", FRONT, 0.0, numerics_class=name)
        loaded(cluster, f"node-{number + 1}", BACK, 0.0, numerics_class=name)
    for formation in ("f1", "f2"):
        cluster.formed(formation, 0.0)
    assert [p.state for p in cluster.view.pipelines()] == ["ready", "ready"]
    return cluster


def test_who_comes_back_with_another_backend_leaves_its_seat_to_another() -> None:
    cluster = ready(replace(PATIENT, can_launch=False))
    actions = cluster.register(vllm("node-2", "again"), 1.0)
    assert "stage_taken" not in said(actions)
    back = one_of(cluster.register(facts("node-3"), 2.0), LoadStage)
    assert (back.node_id, back.layers) == ("node-3", BACK)
    loaded(cluster, "node-3", BACK, 2.0)
    (pipeline,) = cluster.view.pipelines()
    assert [stage.node_id for stage in pipeline.stages] == ["node-1", "node-3"]


def test_a_newer_plan_for_another_backend_keeps_no_pipeline() -> None:
    cluster = ready()
    plan = planned({"?1": FRONT, "?2": BACK}, number=2)
    assert cluster.view.difference(plan, 1.0).kept == ("pipeline-1",)
    (deployment,) = plan.deployments
    (pipeline,) = deployment.pipelines
    stages = tuple(replace(stage, shape=VLLM) for stage in pipeline.stages)
    changed = replace(deployment, pipelines=(replace(pipeline, stages=stages),))
    assert cluster.view.difference(Plan(2, (changed,)), 1.0).kept == ()


def test_spares_are_of_every_backend_of_the_plan_and_hold_what_is_its() -> None:
    cluster = two_pipelines(spares=2)
    offers = [
        Offer("local-1", "local", SHAPE, count=99),
        Offer("local-1-vllm", "local", VLLM, count=99),
    ]
    cluster.market.update(offers)
    first = one_of(cluster.offers_changed(1.0), LaunchNode)
    came = cluster.register(replace(facts(first.node_id), shape=first.shape), 2.0)
    second = one_of(came, LaunchNode)
    assert {first.shape.backend, second.shape.backend} == {"native", "vllm"}
    load = one_of(came, LoadStage)  # and has not loaded it when the other comes
    told = cluster.register(replace(facts(second.node_id), shape=second.shape), 4.0)
    more = next(one for one in all_of(told, LoadStage) if one.node_id == second.node_id)
    assert more.layers == load.layers  # what a node of the other backend has is none of its own
    assert len(cluster.view.spares()) == 2


def test_a_node_suits_seats_of_its_own_backend_alone() -> None:
    held = HeldStage(GOAL.model, FRONT, 1)
    for shape in (VLLM, replace(ANY_SHAPE, backend="vllm")):
        seat = Seat(PlannedStage(FRONT, shape=shape), held, shape)
        assert suits(VLLM, seat)
        assert not suits(SHAPE, seat)


def test_a_node_suits_seats_of_no_more_ranks_than_it_has_devices() -> None:
    held = HeldStage(GOAL.model, FRONT, 2)
    seat = Seat(PlannedStage(FRONT, 2), held, ANY_SHAPE)
    assert suits(replace(SHAPE, device_count=2), seat)
    assert not suits(SHAPE, seat)


def test_who_has_too_few_devices_for_a_stage_is_not_given_its_seat() -> None:
    cluster = Prompt(replace(PATIENT, can_launch=False), drawer(), 0.0, 0.0)
    cluster.start(0.0)
    wide = replace(SHAPE, device_count=2)
    for told in (facts("node-1"), replace(facts("node-2"), shape=wide)):
        cluster.register(told, 0.0)
    (deployment,) = planned(PAIR).deployments
    (pipeline,) = deployment.pipelines
    front, back = pipeline.stages
    pipeline = replace(pipeline, stages=(front, replace(back, tp_degree=2, shape=wide)))
    cluster.plan_ready(Plan(1, (replace(deployment, pipelines=(pipeline,)),)), 0.0)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    assert all_of(cluster.register(facts("node-3"), 2.0), LoadStage) == []
    load = one_of(cluster.register(replace(facts("node-4"), shape=wide), 3.0), LoadStage)
    assert (load.node_id, load.layers, load.tp_degree) == ("node-4", BACK, 2)
