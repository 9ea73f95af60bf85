"""What fills a plan up, and with which nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import CandidateNode, Workload
from services.placement.replan.parts import (
    BEST,
    CHEAPEST,
    MOST_MORE,
    best_nodes,
    cheapest,
    filled,
    planned,
    within_the_rest,
)
from services.placement.replan.worth import cost_per_hour, node_count
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem, Solution
from tests.unit.placement.conftest import MakeCosts
from tests.unit.placement.replan.test_redivision import node, on

PER_COST = ObjectiveKind.THROUGHPUT_PER_COST


@pytest.fixture
def problem_of(make_costs: MakeCosts):  # type: ignore[no-untyped-def]
    def make(nodes: Sequence[CandidateNode], budget: float = 0.0) -> Problem:
        costs = make_costs("llama-3.1-8b", workload=Workload(arrival_rate_rps=0.001))
        return Problem(costs, tuple(nodes), Objective(PER_COST, budget))

    return make


def ids(nodes: Sequence[CandidateNode]) -> list[str]:
    return [one.node_id for one in nodes]


def test_where_cost_counts_those_are_best_that_do_most_for_their_price(problem_of) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("slow", 0.5, 0.4), node("fast", 2.0, 2.0), node("fair", 1.0, 1.1)]
    assert ids(best_nodes(problem_of(nodes), nodes, 2, frozenset())) == ["fair", "fast"]
    assert ids(cheapest(nodes)) == ["slow", "fair", "fast"]
    assert ids(best_nodes(problem_of(nodes), nodes, 0, frozenset())) == ids(nodes), "all"


def test_a_plan_is_filled_with_the_best_and_with_the_cheapest(problem_of) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("now"), node("fair", 1.0, 1.1), node("slow", 0.5, 0.4), node("fast", 2.0, 2.0)]
    now = on(nodes[0])
    found = dict(filled(problem_of(nodes), (now,), 2, 0, shuntserve.plan, UNLIMITED))
    assert {name: [p.node_ids for p in plan] for name, plan in found.items()} == {
        BEST: [("now",), ("fair",)],
        CHEAPEST: [("now",), ("slow",)],
    }
    assert all(plan[0] is now for plan in found.values())


@pytest.mark.parametrize(("least", "most", "count"), [(3, 0, 3), (9, 0, 4), (9, 3, 3), (1, 0, 0)])
def test_it_is_filled_as_far_as_there_are_nodes_and_no_further(  # type: ignore[no-untyped-def]
    problem_of, least: int, most: int, count: int
) -> None:
    nodes = [node(f"n-{i}") for i in range(4)]
    found = filled(problem_of(nodes), (on(nodes[0]),), least, most, shuntserve.plan, UNLIMITED)
    assert [node_count(plan) for _, plan in found] == ([count] if count else [])


@pytest.mark.parametrize(("budget", "cost"), [(2.5, 2.0), (4.0, 4.0), (1.0, 0.0), (0.5, 0.0)])
def test_it_is_filled_within_what_the_budget_leaves(  # type: ignore[no-untyped-def]
    problem_of, budget: float, cost: float
) -> None:
    nodes = [node(f"n-{i}") for i in range(5)]
    problem = problem_of(nodes, budget)
    found = filled(problem, (on(nodes[0]),), 5, 0, shuntserve.plan, UNLIMITED)
    assert [cost_per_hour(plan) for _, plan in found] == ([cost] if cost else [])
    assert within_the_rest(problem, ()) is problem
    assert (within_the_rest(problem, (on(nodes[0]),)) is None) == (budget <= 1.0)


def test_where_one_more_holds_no_pipeline_two_are_added(problem_of) -> None:  # type: ignore[no-untyped-def]
    nodes = [node(f"n-{i}", gib=12) for i in range(4)]
    now = on(*nodes[:2])
    found = filled(problem_of(nodes), (now,), 3, 0, shuntserve.plan, UNLIMITED)
    assert [node_count(plan) for _, plan in found] == [4]
    assert filled(problem_of(nodes), (now,), 3, 3, shuntserve.plan, UNLIMITED) == []


def test_no_more_are_tried_than_a_few_beyond_those_that_are_lacking(problem_of) -> None:  # type: ignore[no-untyped-def]
    tried = list[int]()

    def nothing_fits(problem: Problem, budget: SearchBudget) -> Solution:
        tried.append(len(problem.nodes))
        raise FailedPrecondition("nothing fits")

    nodes = [node(f"n-{i}") for i in range(60)]
    problem = problem_of(nodes)
    assert filled(problem, (on(nodes[0]),), 4, 0, nothing_fits, UNLIMITED) == []
    assert tried == [*range(3, 4 + MOST_MORE)] * 2
    assert planned(problem, nodes, nothing_fits, UNLIMITED) == ()
