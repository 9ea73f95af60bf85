"""What is said of plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.common.errors import InvalidArgument
from services.placement.estimate.estimator import estimate_plan
from services.placement.search.budget import Unlimited
from services.placement.search.planners import proportional, shuntserve
from services.placement.search.problem import MAX_RUNNERS_UP, Objective, ObjectiveKind, Problem
from services.placement.search.score import score
from services.placement.search.telling import figures, lacks, shape


@pytest.fixture
def problem(make_costs) -> Problem:
    nodes = cluster({"g6.12xlarge": 4, "g5.12xlarge": 2}, {"g6.12xlarge": 4.6, "g5.12xlarge": 5.6})
    return Problem(make_costs("qwen3-32b", "measured"), nodes, runners_up=4)


def test_a_plan_is_told_by_its_sizes_and_figures(problem):
    (pipeline, *_) = shuntserve.plan(problem, Unlimited()).pipelines
    (stage, *_) = pipeline.stages
    one, two = replace(pipeline, stages=(stage,)), replace(pipeline, stages=(stage, stage))
    assert shape([]) == "no pipeline"
    assert shape([one]) == "1 pipeline of 1 node"
    assert shape([two, two]) == "2 pipelines of 2 nodes each"
    assert shape([two, one, two]) == "3 pipelines: 1 of 1 node, 2 of 2 nodes"
    plan = shuntserve.plan(problem, Unlimited()).pipelines
    total, _ = estimate_plan(problem.costs, plan)
    told = figures(problem, plan)
    assert told == f"{total.throughput_rps:.3g} requests/s at {total.cost_per_hour:.3f} $/h"


@pytest.mark.parametrize("planner", [proportional, shuntserve])
@pytest.mark.parametrize("kind", [ObjectiveKind.THROUGHPUT, ObjectiveKind.THROUGHPUT_PER_COST])
def test_runners_up_are_other_plans_best_first_and_none_unless_asked_for(problem, planner, kind):
    if planner is shuntserve:
        problem = replace(problem, objective=Objective(kind))
    found = planner.plan(problem, Unlimited())
    assert found.runners_up
    assert found.pipelines not in found.runners_up
    scores = [score(problem, pipelines) for pipelines in found.runners_up]
    assert scores == sorted(scores, reverse=True)
    if planner is shuntserve:
        assert scores[0] <= score(problem, found.pipelines) * (1 + 1e-6)
        assert "worse: " in lacks(problem, found.runners_up[0], found.pipelines)
    plain = planner.plan(replace(problem, runners_up=0), Unlimited())
    assert plain.pipelines == found.pipelines
    assert plain.runners_up == ()


def test_more_or_fewer_pipelines_than_asked_for_may_be_better_and_that_is_said(problem):
    found = proportional.plan(replace(problem, pipeline_count=1), Unlimited())
    assert all(len(pipelines) > 1 for pipelines in found.runners_up)
    best = found.runners_up[0]
    assert score(problem, best) > score(problem, found.pipelines)
    assert "better, and not what was asked for" in lacks(problem, best, found.pipelines)


def test_a_missed_target_is_what_a_plan_lacks(problem):
    plan = shuntserve.plan(problem, Unlimited()).pipelines
    late = replace(problem, objective=Objective(tpot_target_s=1e-6))
    assert lacks(late, plan, plan).startswith("TPOT ")


def test_runners_up_have_a_bound(problem):
    with pytest.raises(InvalidArgument, match=f"0 to {MAX_RUNNERS_UP}") as refused:
        replace(problem, runners_up=MAX_RUNNERS_UP + 1)
    assert refused.value.field == "runners_up"
