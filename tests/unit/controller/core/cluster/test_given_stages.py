"""Plans of stages that are given, and degrees that a model can have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import LayerRange
from services.common.nodes import NodeFacts, NodeShape
from services.common.stage_layout import parse_stages
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.applying import operators_plan
from services.controller.core.cluster.backends import KnownShapes
from services.controller.core.cluster.given_stages import plan_of_stages
from services.controller.core.cluster.goals import Goal, Goals
from services.controller.core.cluster.plan_json import plan_to_json
from services.controller.core.model_facts import ModelFacts
from tests.checkpoints import make_config

FACTS = ModelFacts("m", "d", 6, 64, 128, json.dumps(make_config(num_hidden_layers=6)))
SHAPES = tuple(NodeShape(1 << 30, float(n), device_count=2) for n in range(1, 6))
NODES = tuple(
    NodeFacts(f"node-{n}", f"i-{n}", "x:1", n, shape) for n, shape in enumerate(SHAPES, 1)
)
LAYOUT = parse_stages("0-1:tp1,2-5:tp2")


def asked(nodes: int, pipelines: int = 2, facts: ModelFacts = FACTS) -> AskPlan:
    return AskPlan(3, (Goal(facts),), NODES[:nodes], pipelines)


@pytest.mark.parametrize(("nodes", "pipelines", "made"), [(5, 2, 2), (5, 1, 1), (3, 2, 1)])
def test_every_pipeline_has_the_stages_and_nodes_of_its_own(
    nodes: int, pipelines: int, made: int
) -> None:
    plan = plan_of_stages(asked(nodes, pipelines), LAYOUT)
    assert plan.number == 3
    assert [p.pipeline_id for _, p in plan.pipelines()] == ["pipeline-1", "pipeline-2"][:made]
    stages = list(plan.stages())
    assert [s.layers for s in stages] == [LayerRange(0, 2), LayerRange(2, 6)] * made
    assert [s.tp_degree for s in stages] == [1, 2] * made
    assert [s.node_id for s in stages] == [f"node-{n}" for n in range(1, 2 * made + 1)]
    assert [s.shape for s in stages] == [node.shape for node in NODES[: 2 * made]]


def test_each_pipeline_has_nodes_of_one_backend_that_serves_the_model() -> None:
    nodes = tuple(
        replace(node, shape=replace(node.shape, backend=backend))
        for node, backend in zip(NODES, ("native", "vllm", "native", "vllm", "vllm"), strict=True)
    )

    def made(*backends: str, pipelines: int = 3) -> list[list[str]]:
        goal = Goal(replace(FACTS, backends=backends))
        plan = plan_of_stages(AskPlan(3, (goal,), nodes, pipelines), LAYOUT)
        return [[stage.node_id for stage in one.stages] for _, one in plan.pipelines()]

    assert made("native", "vllm") == made() == [["node-1", "node-3"], ["node-2", "node-4"]]
    assert made("vllm") == [["node-2", "node-4"]]
    assert made(pipelines=1) == [["node-1", "node-3"]]
    goal = Goal(replace(FACTS, backends=("vllm",)))
    with pytest.raises(FailedPrecondition, match="are 2, 1 of native, which cannot serve it; 1 of"):
        plan_of_stages(AskPlan(3, (goal,), nodes[:2], 1), LAYOUT)


def test_too_few_nodes_and_stages_that_the_model_cannot_have_are_refused() -> None:
    with pytest.raises(FailedPrecondition, match="2 stages need as many nodes: there are 1"):
        plan_of_stages(asked(1), LAYOUT)
    with pytest.raises(InvalidArgument, match="the model has 6 layers, the stages 5"):
        plan_of_stages(asked(4), parse_stages("0-1,2-4"))
    with pytest.raises(InvalidArgument, match="does not divide the model's 8 attention heads"):
        plan_of_stages(asked(4), parse_stages("0-1,2-5:tp3"))


def test_an_operators_plan_with_such_a_degree_is_refused_by_its_place() -> None:
    plan = plan_of_stages(asked(4), LAYOUT)
    goals = Goals.of(Goal(FACTS))
    assert list(operators_plan(plan_to_json(plan), 4, goals, KnownShapes()).stages()) == list(
        plan.stages()
    )
    config = make_config(num_attention_heads=9, num_key_value_heads=3, hidden_size=36)
    nine = replace(FACTS, config_json=json.dumps(config))
    with pytest.raises(InvalidArgument, match=r"TP degree 2 .* 9 attention") as no:
        operators_plan(plan_to_json(plan), 4, Goals.of(Goal(nine)), KnownShapes())
    assert no.value.field == "deployments[0].pipelines[0].stages[1].tp_degree"


def test_stages_of_more_ranks_than_a_node_has_devices_are_refused_by_its_name() -> None:
    nodes = (*NODES[:3], replace(NODES[3], shape=replace(SHAPES[3], device_count=1)))
    goal = Goal(FACTS)
    assert plan_of_stages(AskPlan(3, (goal,), nodes, 1), LAYOUT)
    with pytest.raises(InvalidArgument, match="2 takes as many devices, and node-4 has 1") as no:
        plan_of_stages(AskPlan(3, (goal,), nodes, 2), LAYOUT)
    assert no.value.field == "stages"


KNOWN = KnownShapes(
    {"small": SHAPES[0], "v": NodeShape(1, 1.0, "l4", 8, "vllm")},
    {"firm": NodeShape(1, 1.0, "l4", 4)},
)


@pytest.mark.parametrize(
    ("stage", "degree", "whose"),
    [
        ({"node": "small"}, 4, "small has 2"),
        ({"node": "small", "offer": "firm"}, 4, "small has 2"),
        ({"offer": "firm"}, 8, "firm has 4"),
        ({"node": "to-come", "shape": {"device_count": 2}}, 4, "to-come has 2"),
        ({"shape": {"memory_bytes": 5}}, 2, "the largest node has 1"),
        ({}, 8, "the largest node has 4"),  # of its backend
    ],
)
def test_an_operators_stage_of_more_ranks_than_devices_is_refused_by_its_place(
    stage: dict[str, Any], degree: int, whose: str
) -> None:
    def text(tp_degree: int) -> str:
        one = {"layers": [0, 6], **stage, "tp_degree": tp_degree}
        return json.dumps(
            {"deployments": [{"model": "m", "pipelines": [{"id": "p", "stages": [one]}]}]}
        )

    goals = Goals.of(Goal(FACTS))
    assert operators_plan(text(degree // 2), 2, goals, KNOWN)
    with pytest.raises(InvalidArgument, match=f"TP degree {degree} takes .*, and {whose}$") as no:
        operators_plan(text(degree), 2, goals, KNOWN)
    assert no.value.field == "deployments[0].pipelines[0].stages[0].tp_degree"


def test_of_a_node_that_nobody_knows_it_decides_itself() -> None:
    stage = {"layers": [0, 6], "node": "to-come", "tp_degree": 4}
    pipelines = [{"id": "p", "stages": [stage]}]
    plan = json.dumps({"deployments": [{"model": "m", "pipelines": pipelines}]})
    assert operators_plan(plan, 2, Goals.of(Goal(FACTS)), KNOWN)


def test_of_a_config_that_says_nothing_here_the_node_decides() -> None:
    for text in ("", "{}", '{"model_type": "other"}'):
        plan_of_stages(asked(4, facts=replace(FACTS, config_json=text)), LAYOUT)
