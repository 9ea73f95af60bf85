"""What something else would change is what the question would be answered with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.common.errors import DeadlineExceeded, InvalidArgument
from services.placement.estimate.cluster import CandidateNode
from services.placement.replan import what_if
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.replan.what_if import MAX_GROUPS, SAME, NodeGroup, what_ifs
from services.placement.search.budget import Part, Unlimited
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem

DAY_S = 86_400.0
PER_COST = ObjectiveKind.THROUGHPUT_PER_COST
Market = tuple[Problem, Change, tuple[NodeGroup, ...]]


def spot(nodes: tuple[CandidateNode, ...], price: float) -> tuple[CandidateNode, ...]:
    return tuple(
        CandidateNode(f"spot-{n.node_id}", replace(n.kind, price_per_hour=price, spot=True))
        for n in nodes
    )


def group(name: str, nodes: tuple[CandidateNode, ...], *, more: bool = False) -> NodeGroup:
    one = CandidateNode(f"{name}-more", nodes[0].kind)
    return NodeGroup(name, frozenset(n.node_id for n in nodes), one if more else None)


@pytest.fixture
def market(make_costs) -> Callable[..., Market]:
    """Pipelines on nodes of one price, and equal nodes on offer at another."""

    def make(price: float, kind: ObjectiveKind = PER_COST) -> Market:
        nodes = cluster({"g6.12xlarge": 2}, {"g6.12xlarge": 4.6})
        alone = Problem(make_costs("qwen3-32b", "measured"), nodes, Objective(kind))
        running = shuntserve.plan(alone, Unlimited()).pipelines
        offered = spot(nodes, price)
        change = Change(running, {}, horizon_s=DAY_S)
        groups = (group("own", nodes), group("spot", offered))
        return replace(alone, nodes=(*nodes, *offered)), change, groups

    return make


def asked(market: Market, **groups: object) -> dict[str, str]:
    found = what_ifs(*market, shuntserve.plan, Unlimited())
    assert found.complete
    return {one.change: one.answer for one in found.answers}


def test_a_price_at_which_an_offer_would_be_taken_is_found(market):
    told = asked(market(price=6.0))
    assert told["as things are"].startswith(
        "the plan that runs stays: 1 pipeline of 2 nodes (2 own)"
    )
    (change,) = [c for c in told if c.endswith("less for a node of spot")]
    assert "at 4.6" not in told[change]
    assert told[change] != SAME
    less = float(change.removeprefix("$").split(" ", 1)[0])
    problem, _, _ = market(price=6.0)
    for share, moves in ((less * 1.02, True), (less * 0.8, False)):
        problem, asking, _ = market(price=6.0 - share)
        found = replan(problem, replace(asking, improve=True), shuntserve.plan, Unlimited())
        assert found.change is moves


def test_what_is_far_too_dear_changes_nothing_at_half_its_price(market):
    told = asked(market(price=60.0))
    assert told["$30 an hour less for a node of spot"] == SAME


def test_what_is_used_and_what_would_take_its_place_is_told(market):
    told = asked(market(price=2.9))
    assert told["as things are"].startswith("1 pipeline of 2 nodes (2 spot)")
    assert "gains" in told["as things are"]
    (dearer,) = [c for c in told if c.endswith("more for a node of spot")]
    assert told[dearer] != SAME
    assert told["one node less of spot"] != SAME
    assert "one node less of own" not in told, "none of them is used"


def test_another_objective_is_answered_as_replan_would(market):
    problem, change, groups = market(price=1.5)
    told = asked((problem, change, groups))
    fast = replace(problem, objective=Objective())
    found = replan(fast, replace(change, improve=True), shuntserve.plan, Unlimited())
    assert told["objective throughput"].startswith(f"{len(found.pipelines)} pipelines")
    assert {c for c in told if c.startswith("objective")} == {
        "objective throughput",
        "objective goodput-per-cost",
    }


def test_one_node_more_is_thought_of_where_none_is_spare(market):
    problem, change, (own, offered) = market(price=1.5, kind=ObjectiveKind.THROUGHPUT)
    more = replace(own, more=CandidateNode("own-more", problem.nodes[0].kind))
    told = asked((problem, change, (more, offered)))
    assert told["one node more of own"].startswith(
        "2 pipelines: 1 of 2 nodes, 1 of 3 nodes (3 own "
    )
    assert "one node more of spot" not in told, "all are used and there is no other"
    assert told["other prices"].startswith(SAME)
    spare = asked(market(price=60.0))
    assert spare["one node more of spot"] == f"{SAME}: of those that may be had 2 are not used"


def test_without_the_only_node_there_is_no_plan(make_costs):
    nodes = cluster({"g6.12xlarge": 1}, {"g6.12xlarge": 4.6})
    problem = Problem(make_costs("qwen3-32b", "measured"), nodes)
    running = shuntserve.plan(problem, Unlimited()).pipelines
    told = asked((problem, Change(running, {}), (group("own", nodes),)))
    assert told["one node less of own"] == "no plan: there is no other node"


def test_time_that_runs_out_leaves_what_was_found(market):
    class Hurried:
        """Over behind some questions."""

        left = 3

        def expired(self) -> bool:
            return self.left <= 0

        def remaining_s(self) -> float:
            return 60.0

    budget = Hurried()

    def search(problem, part):
        budget.left -= 1
        return shuntserve.plan(problem, Unlimited())

    found = what_ifs(*market(price=1.5), search, budget)
    assert not found.complete
    assert 1 <= len(found.answers) < 5
    with pytest.raises(DeadlineExceeded):
        list(what_if._Asking(*market(price=1.5), search, budget).answers())[1:]


def test_a_part_of_a_budget_is_over_before_the_whole() -> None:
    class Left:
        remaining = 8.0

        def expired(self) -> bool:
            return self.remaining <= 0

        def remaining_s(self) -> float:
            return self.remaining

    whole = Left()
    part = Part(whole, 0.25)
    assert part.remaining_s() == 2.0
    whole.remaining = 6.5
    assert (part.remaining_s(), part.expired()) == (0.5, False)
    whole.remaining = 5.9
    assert (part.remaining_s(), part.expired()) == (0.0, True)


def test_groups_are_of_nodes_that_are_there(market):
    problem, change, _ = market(price=1.5)
    with pytest.raises(InvalidArgument, match="no node 'x'"):
        what_ifs(problem, change, [NodeGroup("g", frozenset("x"))], shuntserve.plan, Unlimited())
    there = NodeGroup("g", frozenset(), problem.nodes[0])
    with pytest.raises(InvalidArgument, match="is there"):
        what_ifs(problem, change, [there], shuntserve.plan, Unlimited())


def test_more_groups_than_are_looked_at_are_told_of(market):
    problem, change, groups = market(price=60.0, kind=ObjectiveKind.THROUGHPUT)
    many = [*groups, *(NodeGroup(f"g{n}", frozenset()) for n in range(MAX_GROUPS))]
    assert not what_ifs(problem, change, many, shuntserve.plan, Unlimited()).complete
