"""A pipeline has one backend, which serves the model, whoever plans it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.common.errors import FailedPrecondition, InvalidArgument
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    described,
)
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.replan.what_if import NodeGroup, what_ifs
from services.placement.search.budget import Unlimited
from services.placement.search.division import divide
from services.placement.search.planners import exact, shuntserve
from services.placement.search.problem import Problem, memory_usable
from services.placement.search.registry import NAMES, planner
from services.placement.search.shares import Share

STOCK = {"g5.12xlarge": 2, "g6e.xlarge": 2, "g6.12xlarge": 2}


def mixed(*backends: str) -> tuple[CandidateNode, ...]:
    """Every type half and half, of backends in turn."""
    return tuple(
        replace(node, kind=replace(node.kind, backend=backends[place % len(backends)]))
        for place, node in enumerate(cluster(STOCK))
    )


def of(nodes: tuple[CandidateNode, ...], backend: str) -> tuple[CandidateNode, ...]:
    return tuple(node for node in nodes if node.kind.backend == backend)


def served_by(costs: Costs, *backends: str) -> Costs:
    model = replace(costs.model, backends=frozenset(backends))
    return Costs(model, costs.workload, costs.calibration, costs.catalogue)


def rate(problem: Problem, pipelines: tuple[PlacedPipeline, ...]) -> float:
    return estimate_plan(problem.costs, pipelines)[0].throughput_rps


@pytest.mark.parametrize("name", NAMES)
def test_no_planner_mixes_backends_and_none_uses_one_that_does_not_serve(make_costs, name):
    costs = make_costs("llama-3.1-8b", "measured")
    problem = Problem(costs, mixed("native", "vllm"))
    found = planner(name)(problem, Unlimited())
    assert all(len(pipeline.backends) == 1 for pipeline in found.pipelines)
    if name != "vllm":  # which knows one pipeline
        assert {p.backends[0] for p in found.pipelines} == {"native", "vllm"}
    assert any("3 nodes of native, 3 nodes of vllm" in reason for reason in found.reasons)
    alone = replace(problem, costs=served_by(costs, "vllm"))
    found = planner(name)(alone, Unlimited())
    assert {p.backends for p in found.pipelines} == {("vllm",)}
    assert any("left out: 3 nodes of native" in reason for reason in found.reasons)


def test_where_one_backend_alone_has_too_little_memory_nothing_is_mixed_to_fit(make_costs):
    costs = make_costs("llama-3.1-70b", "measured")
    nodes = cluster({"g5.12xlarge": 2})
    together = Problem(costs, nodes)
    assert len(planner("shuntserve")(together, Unlimited()).pipelines[0].stages) == 2
    apart = tuple(
        replace(node, kind=replace(node.kind, backend=backend))
        for node, backend in zip(nodes, ("native", "vllm"), strict=True)
    )
    for name in NAMES:
        with pytest.raises(FailedPrecondition, match=r"does not fit: .* GiB short; .* on 1 nodes"):
            planner(name)(Problem(costs, apart), Unlimited())
    with pytest.raises(FailedPrecondition, match="no node has a backend that serves"):
        planner("shuntserve")(
            Problem(served_by(costs, "other"), nodes_of("native", nodes)), Unlimited()
        )


def nodes_of(backend: str, nodes: tuple[CandidateNode, ...]) -> tuple[CandidateNode, ...]:
    return tuple(replace(node, kind=replace(node.kind, backend=backend)) for node in nodes)


def test_the_proof_is_that_of_both_parts(make_costs):
    costs = make_costs("llama-3.1-8b", "measured")
    nodes = mixed("native", "vllm")
    whole = exact.plan(Problem(costs, nodes), Unlimited())
    parts = [
        exact.plan(Problem(costs, of(nodes, name)), Unlimited()) for name in ("native", "vllm")
    ]
    bounds = [part.upper_bound_rps for part in parts]
    assert whole.complete
    assert whole.upper_bound_rps == pytest.approx(sum(bounds))
    problem = Problem(costs, nodes)
    assert rate(problem, whole.pipelines) == pytest.approx(whole.upper_bound_rps)
    ours = rate(problem, shuntserve.plan(problem, Unlimited()).pipelines)
    assert whole.upper_bound_rps * 0.99 <= ours <= whole.upper_bound_rps * (1 + 1e-9)


def test_nodes_that_name_no_backend_are_planned_as_nodes_of_one(make_costs):
    costs = make_costs("llama-3.1-8b", "measured")
    unnamed = planner("shuntserve")(Problem(costs, cluster(STOCK)), Unlimited())
    named = planner("shuntserve")(Problem(costs, mixed("native")), Unlimited())
    assert [p.node_ids for p in named.pipelines] == [p.node_ids for p in unnamed.pipelines]
    assert named.reasons == unnamed.reasons


@pytest.mark.parametrize(
    ("backends", "count", "made"),
    [(("native", "vllm"), 2, [3, 3]), (("native", "vllm"), 1, [3]), (("a", "b", "c"), 3, [2] * 3)],
)
def test_the_plain_planner_gives_each_backend_its_share(make_costs, backends, count, made):
    problem = Problem(make_costs("llama-3.1-8b"), mixed(*backends), pipeline_count=count)
    found = planner("proportional")(problem, Unlimited()).pipelines
    assert [len(pipeline.stages) for pipeline in found] == made
    assert len({pipeline.backends for pipeline in found}) == count


def test_a_pipeline_of_two_backends_has_no_estimate(make_costs):
    costs = make_costs("llama-3.1-8b")
    native, vllm = mixed("native", "vllm")[:2]
    pipeline = PlacedPipeline((PlacedStage(native, 0, 16, 4), PlacedStage(vllm, 16, 32, 4)))
    with pytest.raises(FailedPrecondition, match="compute with native and vllm"):
        estimate_pipeline(costs, pipeline)
    alone = PlacedPipeline((PlacedStage(native, 0, 32, 4),))
    with pytest.raises(FailedPrecondition, match="native cannot serve the model; vllm can"):
        estimate_pipeline(served_by(costs, "vllm"), alone)


def test_a_repair_takes_no_node_of_another_backend(make_costs):
    costs = make_costs("llama-3.1-70b", "measured")
    nodes = nodes_of("native", cluster({"g5.12xlarge": 2}))
    running = shuntserve.plan(Problem(costs, nodes), Unlimited()).pipelines
    (more,) = cluster({"g5.12xlarge": 1})
    for backend, serves in (("native", True), ("vllm", False)):
        spare = CandidateNode("more", replace(more.kind, backend=backend))
        problem = Problem(costs, (nodes[0], spare))
        if not serves:
            with pytest.raises(FailedPrecondition):
                replan(problem, Change(running, {}), planner("shuntserve"), Unlimited())
            continue
        found = replan(problem, Change(running, {}), planner("shuntserve"), Unlimited())
        assert found.pipelines[0].backends == ("native",)


def test_a_next_plan_within_few_nodes_looks_at_each_backend(make_costs):
    """The two fastest nodes are of two backends, and neither holds the model alone."""
    costs = make_costs("llama-3.1-70b", "measured")
    (fast,) = cluster({"g6e.12xlarge": 1})
    slow = cluster({"g5.12xlarge": 2})
    small = replace(fast.kind, memory_bytes=12 << 30, backend="vllm")
    nodes = (CandidateNode("fast", small), *nodes_of("native", slow))
    change = Change((), {}, nodes_max=2, improve=True)
    found = replan(Problem(costs, nodes), change, planner("shuntserve"), Unlimited())
    assert found.pipelines[0].backends == ("native",)
    assert any("a pipeline has one backend" in reason for reason in found.reasons)


def test_what_if_answers_within_backends(make_costs):
    costs = make_costs("llama-3.1-70b", "measured")
    nodes = nodes_of("native", cluster({"g5.12xlarge": 2}))
    running = shuntserve.plan(Problem(costs, nodes), Unlimited()).pipelines
    answers = {}
    for backend in ("native", "vllm"):
        more = CandidateNode("more", replace(nodes[0].kind, backend=backend))
        less = [NodeGroup("own", frozenset(node.node_id for node in nodes))]
        problem = Problem(costs, (*nodes, more))
        found = what_ifs(problem, Change(running, {}), less, planner("shuntserve"), Unlimited())
        answers[backend] = {one.change: one.answer for one in found.answers}
    assert answers["native"]["one node less of own"].startswith("1 pipeline of 2 nodes")
    assert answers["vllm"]["one node less of own"].startswith("no plan")


def test_a_model_is_given_nodes_that_serve_it(make_costs):
    costs = make_costs("llama-3.1-8b", "measured")
    nodes = mixed("native", "vllm")
    native = mixed("native")[0]
    assert memory_usable(served_by(costs, "native"), native) > 0
    assert memory_usable(served_by(costs, "vllm"), native) == 0
    shares = [
        Share(name, served_by(costs, name), planner("shuntserve"), Problem(costs, nodes).objective)
        for name in ("native", "vllm")
    ]
    found = divide(nodes, shares, Unlimited())
    assert [{p.backends for p in one.pipelines} for one in found.solutions] == [
        {("native",)},
        {("vllm",)},
    ]


def test_a_backend_has_a_bounded_name():
    with pytest.raises(InvalidArgument, match="at most 64 printable") as no:
        described(load_catalogue(), device_type="l4", backend="v" * 65)
    assert no.value.field == "backend"


@pytest.mark.parametrize("name", ["spotserve", "proportional", "shuntserve", "alpaserve"])
def test_nodes_that_alternate_form_a_pipeline_of_each_backend(make_costs, name):
    nodes = cluster({"g5.12xlarge": 4})
    turns = tuple(
        replace(node, kind=replace(node.kind, backend=("native", "vllm")[place % 2]))
        for place, node in enumerate(nodes)
    )
    problem = Problem(make_costs("llama-3.1-70b", "measured"), turns)
    found = planner(name)(problem, Unlimited()).pipelines
    assert sorted(pipeline.backends for pipeline in found) == [("native",), ("vllm",)]
    assert [len(pipeline.stages) for pipeline in found] == [2, 2]
