"""A change is judged by the objective, over the horizon, its move included."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, Workload
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.replan.change import Change
from services.placement.replan.next_plan import NextPlan, replan
from services.placement.replan.worth import Outlook, cost_per_hour, gain
from services.placement.search.budget import Unlimited
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem

DAY_S = 86_400.0
PER_COST = ObjectiveKind.THROUGHPUT_PER_COST


def priced(nodes: tuple[CandidateNode, ...], price: float) -> tuple[CandidateNode, ...]:
    return tuple(
        CandidateNode(f"cheap-{n.node_id}", replace(n.kind, price_per_hour=price, spot=True))
        for n in nodes
    )


def next_plan(problem: Problem, running: tuple[PlacedPipeline, ...], **change: object) -> NextPlan:
    asked = Change(running, {}, **{"horizon_s": DAY_S, "improve": True, **change})  # type: ignore[arg-type]
    return replan(problem, asked, shuntserve.plan, Unlimited())


@pytest.fixture
def dear(make_costs):
    """Pipelines on dear nodes, and equal nodes on offer at a third of the price."""
    costs = make_costs("qwen3-32b", "measured")
    nodes = cluster({"g6.12xlarge": 2}, {"g6.12xlarge": 4.6})
    problem = Problem(costs, nodes, Objective(PER_COST))
    running = shuntserve.plan(problem, Unlimited()).pipelines
    return problem, running, priced(nodes, 1.5)


def test_a_price_that_fell_is_taken_where_cost_counts(dear):
    problem, running, cheap = dear
    found = next_plan(replace(problem, nodes=(*problem.nodes, *cheap)), running)
    assert found.change
    assert cost_per_hour(found.pipelines) < cost_per_hour(running)
    assert all(n.startswith("cheap-") for p in found.pipelines for n in p.node_ids)
    assert found.gain > 1.0


def test_throughput_alone_moves_nothing_for_a_price(dear):
    problem, _, cheap = dear
    fast = Problem(problem.costs, problem.nodes, Objective())
    there = shuntserve.plan(fast, Unlimited()).pipelines
    budget = Objective(budget_per_hour=cost_per_hour(there))
    found = next_plan(Problem(problem.costs, (*problem.nodes, *cheap), budget), there)
    same = [p for p in there if p in found.pipelines]
    rates = [
        sum(estimate_pipeline(problem.costs, p).throughput_rps for p in ps)
        for ps in (found.pipelines, there)
    ]
    assert same == list(there) or rates[0] > rates[1] * 1.01


def test_a_price_a_little_lower_does_not_pay_for_the_move(dear):
    problem, running, _ = dear
    nearly = priced(problem.nodes, 4.6 * 0.995)
    found = next_plan(replace(problem, nodes=(*problem.nodes, *nearly)), running)
    assert not found.change
    assert found.pipelines == running


def test_nodes_that_come_late_are_not_worth_a_short_horizon(dear):
    problem, running, cheap = dear
    nodes = (*problem.nodes, *cheap)
    late = {node.node_id: 500.0 for node in cheap}
    found = next_plan(replace(problem, nodes=nodes), running, horizon_s=550.0, ready_in_s=late)
    soon = next_plan(replace(problem, nodes=nodes), running, horizon_s=550.0, load_bytes_per_s=1e11)
    assert not found.change
    assert soon.change


def test_kept_and_new_pipelines_share_one_budget(dear):
    problem, running, cheap = dear
    kept = running[:1]
    limit = cost_per_hour(kept) + 2.0
    objective = Objective(budget_per_hour=limit)
    found = next_plan(Problem(problem.costs, (*problem.nodes, *cheap), objective), kept)
    assert cost_per_hour(found.pipelines) <= limit * (1 + 1e-9)
    unchanged = next_plan(
        Problem(problem.costs, (*problem.nodes, *cheap), objective), kept, improve=False
    )
    assert cost_per_hour(unchanged.pipelines) <= limit * (1 + 1e-9)
    assert kept[0] in unchanged.pipelines


def test_prices_that_rose_above_the_budget_end_pipelines(make_costs):
    costs = make_costs("qwen3-32b", "measured")
    nodes = cluster({"g6.12xlarge": 3}, {"g6.12xlarge": 1.0})
    alone = [shuntserve.plan(Problem(costs, (node,)), Unlimited()).pipelines for node in nodes]
    running = tuple(pipeline for pipelines in alone for pipeline in pipelines)
    assert len(running) == 3
    budget = cost_per_hour(running) * 0.75
    dearer = Problem(costs, nodes, Objective(budget_per_hour=budget))
    found = next_plan(dearer, running, improve=False)
    assert found.pipelines
    assert cost_per_hour(found.pipelines) <= budget


def test_fewer_requests_need_fewer_pipelines_and_more_need_more(make_costs):
    nodes = cluster({"g6.12xlarge": 4}, {"g6.12xlarge": 2.0})
    objective = Objective(PER_COST)
    alone = make_costs("qwen3-32b", "measured")
    one = shuntserve.plan(Problem(alone, nodes[:1], Objective()), Unlimited()).pipelines
    each_rps = estimate_pipeline(alone, one[0]).throughput_rps

    def problem(rate: float) -> Problem:
        costs = make_costs("qwen3-32b", "measured", Workload(arrival_rate_rps=rate))
        return Problem(costs, nodes, objective)

    busy = next_plan(problem(2.5 * each_rps), one)
    assert cost_per_hour(busy.pipelines) > cost_per_hour(one)
    calm = next_plan(problem(0.5 * each_rps), busy.pipelines)
    assert cost_per_hour(calm.pipelines) < cost_per_hour(busy.pipelines)
    assert next_plan(problem(0.5 * each_rps), calm.pipelines).pipelines == calm.pipelines


def test_what_was_not_taken_says_what_it_lacks(dear):
    problem, running, cheap = dear
    found = next_plan(replace(problem, nodes=(*problem.nodes, *cheap)), running)
    lacks = {one.plan: one.lacks for one in found.alternatives}
    assert "what is left of the running plan" in lacks
    assert "worse over the horizon" in lacks["what is left of the running plan"]


def test_worth_is_requests_where_nothing_costs():
    free, dear = Outlook(10.0, 0.0), Outlook(10.0, 5.0)
    assert free.worth(PER_COST) == 10.0
    assert dear.worth(PER_COST) == 2.0
    assert gain(PER_COST, dear, dear) == 0.0
    assert gain(PER_COST, dear, Outlook(0.0, 1.0)) == float("inf")
