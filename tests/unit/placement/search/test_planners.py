"""Every planner's plan is valid, and ours is at least as good as any."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.placement_clusters import TYPES, cluster, random_cluster
from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import PlacedPipeline, Workload
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.search.budget import SearchBudget, Unlimited
from services.placement.search.planners import exact, shuntserve, thunderserve
from services.placement.search.problem import Objective, Problem
from services.placement.search.registry import NAMES, planner

QUICK = [name for name in NAMES if name not in ("exact", "helix", "hexgen", "thunderserve")]


class Spent:
    """A budget that is over after some looks at it."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    @property
    def over(self) -> int:
        """How often it was looked at when it was over."""
        return max(0, -self._looks)

    def expired(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def remaining_s(self) -> float:
        return 0.05


def rate(problem: Problem, name: str, budget: SearchBudget | None = None) -> float:
    solution = planner(name)(problem, budget or Unlimited())
    check(problem, solution.pipelines)
    return estimate_plan(problem.costs, solution.pipelines)[0].throughput_rps


def check(problem: Problem, pipelines: tuple[PlacedPipeline, ...]) -> None:
    """Layers once and in order, memory, TP (all by the estimator); nodes once, and known."""
    used = [node_id for pipeline in pipelines for node_id in pipeline.node_ids]
    assert pipelines
    assert len(used) == len(set(used))
    assert set(used) <= {node.node_id for node in problem.nodes}
    for pipeline in pipelines:
        assert estimate_pipeline(problem.costs, pipeline).max_batch >= 1


def test_the_papers_cluster_carries_more_than_the_best_known_plan(make_costs, paper_cluster):
    problem = Problem(make_costs(), paper_cluster)
    found = rate(problem, "shuntserve")
    assert found >= 7.333
    proof = exact.plan(problem, Unlimited())
    assert proof.upper_bound_rps == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("number", range(0, 24, 2))
def test_ours_is_within_a_percent_of_the_proof(make_costs, number):
    model = ("llama-3.1-70b", "qwen3-32b")[number // 2 % 2]
    problem = Problem(make_costs(model, "measured"), random_cluster(number, 6))
    try:
        ours = rate(problem, "shuntserve")
    except FailedPrecondition:
        with pytest.raises(FailedPrecondition):
            exact.plan(problem, Unlimited())
        return
    proof = exact.plan(problem, Unlimited())
    assert proof.upper_bound_rps is not None
    assert proof.upper_bound_rps * 0.99 <= ours <= proof.upper_bound_rps * (1 + 1e-9)


@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-32b"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("shuntserve", "helix")])
def test_no_other_planner_beats_ours_on_the_papers_cluster(make_costs, paper_cluster, name, model):
    problem = Problem(make_costs(model), paper_cluster)
    assert rate(problem, name) <= rate(problem, "shuntserve") * (1 + 1e-9)


def test_helix_finds_a_placement_within_its_time(make_costs):
    problem = Problem(make_costs("qwen3-32b"), cluster({"g5.12xlarge": 2, "g6e.xlarge": 2}))
    assert rate(problem, "helix", Spent(1000)) <= rate(problem, "shuntserve") * (1 + 1e-9)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    counts=st.dictionaries(st.sampled_from(TYPES), st.integers(1, 4), min_size=1, max_size=4),
    model=st.sampled_from(["llama-3.1-70b", "llama-3.1-8b", "qwen3-32b", "smollm2-135m"]),
    calibration=st.sampled_from(["nominal", "measured"]),
    tokens=st.tuples(st.integers(1, 8000), st.integers(1, 2000)),
    name=st.sampled_from(QUICK),
    uniform=st.booleans(),
)
def test_every_plan_is_valid(make_costs, counts, model, calibration, tokens, name, uniform):
    costs = make_costs(model, calibration, Workload(*tokens))
    uniform = uniform and name in ("shuntserve", "vllm", "spotserve")  # the others refuse it
    problem = Problem(costs, cluster(counts), Objective(uniform_tp=uniform))
    try:
        solution = planner(name)(problem, Unlimited())
    except FailedPrecondition:
        return
    check(problem, solution.pipelines)
    if uniform:
        assert len({s.tp for p in solution.pipelines for s in p.stages}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_does_not_fit_is_refused_with_what_is_missing(make_costs, name):
    problem = Problem(make_costs(), cluster({"g6.xlarge": 2}))
    with pytest.raises(FailedPrecondition, match=r"\d+\.\d GiB short"):
        planner(name)(problem, Unlimited())


def test_no_nodes_and_absurd_numbers_are_refused(make_costs, paper_cluster):
    with pytest.raises(InvalidArgument, match="no nodes"):
        Problem(make_costs(), ())
    with pytest.raises(InvalidArgument, match="twice"):
        Problem(make_costs(), (paper_cluster[0], paper_cluster[0]))
    with pytest.raises(InvalidArgument, match="input_tokens"):
        Workload(0, 1)
    with pytest.raises(InvalidArgument, match="output_tokens"):
        Workload(1, 1 << 40)
    with pytest.raises(InvalidArgument, match="budget_per_hour"):
        Objective(budget_per_hour=float("nan"))
    with pytest.raises(InvalidArgument, match="unknown planner"):
        planner("best")


@pytest.mark.parametrize("looks", [6, 12, 25])
def test_a_search_cut_short_answers_the_best_it_has(make_costs, looks):
    problem = Problem(make_costs(), cluster({"g5.12xlarge": 8, "g6e.xlarge": 8, "g6.12xlarge": 8}))
    solution = shuntserve.plan(problem, Spent(looks))
    check(problem, solution.pipelines)
    assert not solution.complete


def test_exact_refuses_a_large_cluster(make_costs):
    with pytest.raises(FailedPrecondition, match="at most"):
        exact.plan(Problem(make_costs(), cluster({"g6.12xlarge": 30})), Unlimited())


def test_phases_are_split_only_when_asked(make_costs, paper_cluster):
    together = planner("thunderserve")(Problem(make_costs(), paper_cluster), Unlimited())
    assert {p.phase.value for p in together.pipelines} == {"both"}
    split = Problem(make_costs(), paper_cluster, Objective(allow_phase_split=True))
    apart = planner("thunderserve")(split, Unlimited())
    check(split, apart.pipelines)
    assert {p.phase.value for p in apart.pipelines} == {"prefill", "decode"}
    assert rate(split, "shuntserve") >= rate(split, "thunderserve") * (1 - 1e-9)


def test_the_plain_planner_splits_in_proportion_to_speed(make_costs):
    from services.placement.estimate.catalogue import load_catalogue
    from services.placement.estimate.cluster import CandidateNode, described

    nodes = tuple(
        CandidateNode(f"n{i}", described(load_catalogue(), device_type="cpu", relative_speed=speed))
        for i, speed in enumerate((3.0, 2.0, 3.0, 2.0))
    )
    problem = Problem(make_costs("smollm2-135m", "measured"), nodes, pipeline_count=2)
    solution = planner("proportional")(problem, Unlimited())
    assert [[s.layers for s in p.stages] for p in solution.pipelines] == [[18, 12], [18, 12]]
    check(problem, solution.pipelines)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "proportional"])
def test_who_runs_out_of_time_does_not_say_that_nothing_fits(make_costs, name):
    problem = Problem(make_costs("qwen3-32b"), cluster({"g5.12xlarge": 2, "g6.12xlarge": 3}))
    with suppress(DeadlineExceeded):
        check(problem, planner(name)(problem, Spent(0)).pipelines)


def test_uniform_degrees_are_not_tried_after_time_is_out(make_costs):
    budget = Spent(3)
    problem = Problem(make_costs(), cluster({"g6e.xlarge": 60}))
    with suppress(DeadlineExceeded):
        planner("spotserve")(problem, budget)
    assert budget.over < 4


def test_groups_are_not_searched_after_time_is_out(make_costs, monkeypatch):
    looked_at: list[object] = []
    pipelines = thunderserve.Search.pipelines

    def counted(self, state):
        looked_at.append(state)
        return pipelines(self, state)

    monkeypatch.setattr(thunderserve.Search, "pipelines", counted)
    problem = Problem(make_costs("qwen3-32b"), cluster({"g6e.xlarge": 12}))
    with suppress(DeadlineExceeded):
        thunderserve.plan(problem, Spent(2))
    assert len(set(looked_at)) <= 3
