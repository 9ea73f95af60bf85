from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.plan import (
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.plan_json import plan_from_json, plan_to_json

MODEL = ModelRef("m", "d")
FAST = NodeShape(1 << 30, 2.5, "gpu", 2)


def stage(start: int, end: int, node_id: str = "", **more: Any) -> PlannedStage:
    return PlannedStage(LayerRange(start, end), node_id=node_id, **more)


def plan_of(*pipelines: tuple[PlannedStage, ...], number: int = 1) -> Plan:
    made = tuple(PlannedPipeline(f"p{n}", stages, 1.0) for n, stages in enumerate(pipelines))
    return Plan(number, (Deployment(MODEL, "throughput", made),))


@pytest.mark.parametrize(
    ("pipelines", "field"),
    [
        ([(stage(0, 2, "a"), stage(2, 4, "a"))], "node_id"),
        ([(stage(0, 2), stage(3, 4))], "deployments[0].pipelines[0].stages[1].layers"),
        ([(stage(1, 4),)], "deployments[0].pipelines[0].stages[0].layers"),
        ([(stage(0, 0),)], "deployments[0].pipelines[0].stages[0].layers"),
        ([(stage(0, 4),), (stage(0, 3),)], "deployments[0].pipelines"),
        ([()], "deployments[0].pipelines[0].stages"),
        ([(stage(0, 4, tp_degree=0),)], "deployments[0].pipelines[0].stages[0].tp_degree"),
        (
            [(stage(0, 4, shape=NodeShape(0, float("nan"))),)],
            "deployments[0].pipelines[0].stages[0].shape",
        ),
        (
            [(stage(0, 4, shape=NodeShape(0, 1.0, device_count=65)),)],
            "deployments[0].pipelines[0].stages[0].shape",
        ),
    ],
)
def test_a_plan_that_does_not_hold_together_cannot_be_made(
    pipelines: list[tuple[PlannedStage, ...]], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_of(*pipelines)
    assert caught.value.field == field


def test_names_are_used_once() -> None:
    one = PlannedPipeline("p", (stage(0, 4),), 1.0)
    with pytest.raises(InvalidArgument, match="'p' is there more than once"):
        Plan(1, (Deployment(MODEL, "throughput", (one, one)),))
    with pytest.raises(InvalidArgument) as caught:
        Plan(0, (Deployment(MODEL, "throughput", (one,)),))
    assert caught.value.field == "number"
    with pytest.raises(InvalidArgument) as caught:
        Plan(1, (Deployment(MODEL, "throughput", (PlannedPipeline("p", (stage(0, 4),), -1.0),)),))
    assert caught.value.field == "deployments[0].pipelines[0].weight_tokens_per_s"


def test_its_json_says_all_of_it() -> None:
    first = (stage(0, 2, "a", shape=FAST), stage(2, 4, offer_id="o", tp_degree=2))
    pipelines = (
        PlannedPipeline("p", first, 12.5, PipelinePhase.PREFILL, (("q", 3.0),)),
        PlannedPipeline("q", (stage(0, 4),), 0.0),
    )
    plan = Plan(7, (Deployment(MODEL, "goodput", pipelines),))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_from_json(plan_to_json(plan), 9).number == 9


def test_an_operator_may_leave_out_what_has_a_default() -> None:
    text = """{"deployments": [{"model": "m", "pipelines":
        [{"id": "p", "stages": [{"layers": [0, 4], "node": "a"}]}]}]}"""
    (deployment,) = plan_from_json(text, 3).deployments
    assert deployment.objective == "throughput"
    assert deployment.pipelines[0].stages == (stage(0, 4, "a"),)


GOOD: dict[str, Any] = {
    "version": 1,
    "deployments": [
        {"model": "m", "pipelines": [{"id": "p", "stages": [{"layers": [0, 4]}]}]},
    ],
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2}, "version"),
        ({"nodes": []}, "plan"),
        ({"deployments": {}}, "deployments"),
        ({"deployments": [7]}, "deployments[0]"),
        ({"deployments": [{"pipelines": []}]}, "deployments[0].model"),
        (
            {"deployments": [{"model": "m", "pipelines": [{"id": 1}]}]},
            "deployments[0].pipelines[0].id",
        ),
        ({"number": True}, "number"),
        ({"number": 1 << 70}, "number"),
    ],
)
def test_a_slip_in_the_json_is_told_with_its_place(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_from_json(json.dumps(GOOD | change))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("stage_item", "field"),
    [
        ({"layers": [0]}, "layers"),
        ({"layers": [0, 4.0]}, "layers"),
        ({"layers": [0, 4], "tp_degree": "2"}, "tp_degree"),
        ({"layers": [0, 4], "nodes": "a"}, ""),
        ({"layers": [0, 4], "shape": {"relative_speed": 10**400}}, "shape.relative_speed"),
    ],
)
def test_a_slip_in_a_stage_too(stage_item: dict[str, Any], field: str) -> None:
    item = {"model": "m", "pipelines": [{"id": "p", "stages": [stage_item]}]}
    with pytest.raises(InvalidArgument) as caught:
        plan_from_json(json.dumps({"deployments": [item]}))
    where = "deployments[0].pipelines[0].stages[0]"
    assert caught.value.field == (f"{where}.{field}" if field else where)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["version", "deployments", "pipelines", "stages", "layers", "id", "model"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_given_is_a_plan_or_an_error_that_names_a_field(document: Any) -> None:
    field = "none"
    try:
        plan_from_json(json.dumps(document))
    except InvalidArgument as error:
        field = error.field
    assert field


def test_what_is_no_json_is_refused() -> None:
    for text in ("", "{", "[" * 100_000):
        with pytest.raises(InvalidArgument) as caught:
            plan_from_json(text)
        assert caught.value.field == "plan"


def test_a_plan_of_before_there_were_phases_has_pipelines_that_do_both() -> None:
    document = json.dumps(GOOD).replace('"id": "p"', '"id": "p", "phase": "whole"')
    (deployment,) = plan_from_json(document, 1).deployments
    assert deployment.pipelines[0].phase is PipelinePhase.BOTH


@pytest.mark.parametrize(
    ("phase", "onward"),
    [
        (PipelinePhase.BOTH, (("q", 1.0),)),
        (PipelinePhase.PREFILL, (("p", 1.0),)),
        (PipelinePhase.PREFILL, (("r", 1.0),)),
        (PipelinePhase.PREFILL, (("q", 0.0),)),
        (PipelinePhase.PREFILL, (("q", float("inf")),)),
        (PipelinePhase.PREFILL, (("q", 1.0), ("q", 2.0))),
    ],
)
def test_only_who_prefills_hands_on_and_only_to_who_decodes(
    phase: PipelinePhase, onward: tuple[tuple[str, float], ...]
) -> None:
    pipelines = (
        PlannedPipeline("p", (stage(0, 4),), 1.0, phase, onward),
        PlannedPipeline("q", (stage(0, 4),), 1.0),
    )
    with pytest.raises(InvalidArgument) as caught:
        Plan(1, (Deployment(MODEL, "throughput", pipelines),))
    assert caught.value.field == "deployments[0].pipelines[0].onward"


def test_other_names_of_pipelines_are_those_that_are_handed_on_to() -> None:
    pipelines = (
        PlannedPipeline("p", (stage(0, 4),), 1.0, PipelinePhase.PREFILL, (("q", 1.0),)),
        PlannedPipeline("q", (stage(0, 4),), 1.0),
    )
    plan = Plan(1, (Deployment(MODEL, "throughput", pipelines),)).renamed({"q": "other"})
    assert [p.onward for _, p in plan.pipelines()] == [(("other", 1.0),), ()]
