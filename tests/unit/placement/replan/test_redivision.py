"""Nodes and money are divided anew where one model lacks what others have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    Workload,
    described,
)
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.replan.change import Change
from services.placement.replan.redivision import Redivision, redivide
from services.placement.replan.worth import cost_per_hour
from services.placement.search import division
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem, Solution
from services.placement.search.shares import Limits, Share
from tests.unit.placement.conftest import MakeCosts

GIB = 1 << 30
LAYERS = 32
"""Of llama-3.1-8b, which a node of 64 GiB holds with all that it needs, and one of 12 by half."""


def node(name: str, price: float = 1.0, speed: float = 1.0, gib: int = 64) -> CandidateNode:
    kind = described(
        load_catalogue(),
        device_type="l4",
        relative_speed=speed,
        memory_bytes=gib * GIB,
        price_per_hour=price,
    )
    return CandidateNode(name, kind)


def on(*nodes: CandidateNode) -> PlacedPipeline:
    """A pipeline of even layers."""
    ends = [LAYERS * place // len(nodes) for place in range(len(nodes) + 1)]
    stages = zip(nodes, itertools.pairwise(ends), strict=True)
    return PlacedPipeline(tuple(PlacedStage(n, start, end, 1) for n, (start, end) in stages))


@pytest.fixture
def share(make_costs: MakeCosts):  # type: ignore[no-untyped-def]
    def make(name: str, kind: ObjectiveKind = ObjectiveKind.THROUGHPUT, **more) -> Share:  # type: ignore[no-untyped-def]
        costs = make_costs("llama-3.1-8b", workload=more.pop("workload", None))
        return Share(name, costs, shuntserve.plan, Objective(kind), **more)

    return make


def redivided(
    nodes: Sequence[CandidateNode],
    shares: Sequence[Share],
    running: Sequence[tuple[PlacedPipeline, ...]],
    limits: Limits | None = None,
    **change: object,
) -> Redivision:
    changes = [Change(one, {}, **{"horizon_s": 3600.0, **change}) for one in running]  # type: ignore[arg-type]
    found = redivide(nodes, shares, changes, limits or Limits(), UNLIMITED)
    used = [name for plan in found.plans for p in plan.pipelines for name in p.node_ids]
    assert len(used) == len(set(used)), "no node is in two pipelines"
    assert set(used) <= {n.node_id for n in nodes}
    return found


def pipelines(found: Redivision) -> list[tuple[PlacedPipeline, ...]]:
    return [plan.pipelines for plan in found.plans]


def spent(found: Redivision) -> float:
    return sum(cost_per_hour(plan.pipelines) for plan in found.plans)


def test_who_has_spent_the_money_gives_some_of_it_back(share) -> None:  # type: ignore[no-untyped-def]
    """A model's node is lost, and the other one has taken its money meanwhile."""
    nodes = [node("b-1"), node("b-2"), node("offer#1")]
    running = (on(nodes[0]),), (on(nodes[1]),)
    found = redivided(nodes, [share("a"), share("b")], ((), running[0] + running[1]), Limits(2.0))
    assert found.change
    assert found.gain == math.inf
    assert [len(one) for one in pipelines(found)] == [1, 1]
    (kept,) = found.plans[1].pipelines
    assert kept in running[0] + running[1], "what the other one keeps goes on untouched"
    assert spent(found) <= 2.0
    assert found.reasons[0].startswith("a: 1 pipeline of 1 node")
    assert found.reasons[0].endswith("nothing serves it now")
    assert "now 2 pipelines of 1 node each" in found.reasons[1]
    assert [(one.plan, one.lacks) for one in found.alternatives] == [
        ("what is left of the running plan", "no pipeline of a")
    ]


def test_of_nodes_that_come_by_themselves_the_other_model_gives_some(share) -> None:  # type: ignore[no-untyped-def]
    """Nothing has a price, and nothing is on offer: what is there is divided."""
    nodes = [node(f"b-{i}", 0.0) for i in range(3)]
    running = tuple(on(one) for one in nodes)
    found = redivided(nodes, [share("a"), share("b")], ((), running))
    assert found.change
    assert [len(one) for one in pipelines(found)] == [1, 2]
    assert set(found.plans[1].pipelines) < set(running)


def test_a_model_that_needs_two_nodes_gets_both_of_them(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node(f"b-{i}", 0.0, gib=12) for i in range(4)]
    running = on(*nodes[:2]), on(*nodes[2:])
    found = redivided(nodes, [share("a"), share("b")], ((), running))
    assert [len(one) for one in pipelines(found)] == [1, 1]
    assert found.plans[1].pipelines[0] in running


def test_nodes_that_hold_a_lost_pipeline_s_weights_hold_them_again(share) -> None:  # type: ignore[no-untyped-def]
    """Two equal nodes are free: the one that was in the lost pipeline is nearer."""
    small = [node(f"n-{i}", 0.0, gib=12) for i in range(5)]
    lost = on(node("gone", 0.0, gib=12), small[4])
    running = ((lost,), (on(*small[:2]), on(*small[2:4])))
    found = redivided(small, [share("a"), share("b")], running)
    (again,) = found.plans[0].pipelines
    assert "n-4" in again.node_ids
    kept = next(move for move in found.plans[0].node_moves if move.stage.node.node_id == "n-4")
    assert kept.resident_bytes > 0


def test_nothing_changes_where_no_more_are_served_and_nothing_gains_enough(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("a-1"), node("b-1")]
    running = ((on(nodes[0]),), (on(nodes[1]),))
    found = redivided(nodes, [share("a"), share("b")], running, Limits(2.0))
    assert not found.change
    assert pipelines(found) == list(running)
    assert [one.plan for one in found.alternatives] == ["a new division"]


def test_a_division_that_gains_less_than_its_move_moves_nothing(share) -> None:  # type: ignore[no-untyped-def]
    """Three nodes of four are the one model's; even would be better, and pays over a day only."""
    nodes = [node(f"n-{i}", 0.0) for i in range(6)]
    running = ((on(nodes[0]),), tuple(on(one) for one in nodes[1:]))
    shares = [share("a"), share("b")]
    long = redivided(nodes, shares, running, horizon_s=86_400.0)
    assert [len(one) for one in pipelines(long)] == [3, 3]
    assert 0 < long.gain < math.inf
    slow = redivided(nodes, shares, running, horizon_s=60.0, load_bytes_per_s=1e8)
    assert not slow.change
    again = redivided(nodes, shares, pipelines(long), horizon_s=86_400.0)
    assert not again.change, "the same question again moves nobody back"


def test_a_division_that_is_less_late_is_made_whatever_it_gains_and_one_that_is_later_is_not(
    share,  # type: ignore[no-untyped-def]
) -> None:
    """One model's only node has more to do than it can; the other one has three, and little."""
    nodes = [node(f"n-{i}") for i in range(4)]
    one = estimate_pipeline(share("a").costs, on(nodes[0])).throughput_rps
    busy = share("a", workload=Workload(arrival_rate_rps=1.5 * one))
    busy = replace(busy, objective=Objective(ttft_target_s=60.0))
    running = ((on(nodes[0]),), tuple(map(on, nodes[1:])))
    found = redivided(nodes, [busy, share("b")], running, hysteresis=10.0)
    assert [len(each) for each in pipelines(found)] == [2, 2]
    assert [plan.late for plan in found.plans] == ["", ""]
    assert [one.lacks for one in found.alternatives] == ["a: the arrival rate is past saturation"]
    there = tuple(plan.pipelines for plan in found.plans)
    heavy = replace(share("b"), weight=20.0)
    kept = redivided(nodes, [busy, heavy], there, hysteresis=0.0)
    assert not kept.change, "the product would rather have the other model's node back"


def test_what_stays_although_it_is_late_says_so(share) -> None:  # type: ignore[no-untyped-def]
    """Each model has the one node that it needs, and no division is less late."""
    nodes = [node("n-0"), node("n-1")]
    one = estimate_pipeline(share("a").costs, on(nodes[0])).throughput_rps
    busy = share("a", workload=Workload(arrival_rate_rps=1.5 * one))
    busy = replace(busy, objective=Objective(ttft_target_s=60.0))
    running = (on(nodes[0]),), (on(nodes[1]),)
    found = redivided(nodes, [busy, share("b")], running, hysteresis=10.0)
    assert not found.change
    assert found.reasons[1:] == ("it is late: a: the arrival rate is past saturation",)
    assert len(redivided(nodes, [share("a"), share("b")], running, hysteresis=10.0).reasons) == 1


def test_what_is_above_the_budget_is_brought_below_it_and_serves_both(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node(f"n-{i}") for i in range(4)]
    running = (tuple(map(on, nodes[:2])), tuple(map(on, nodes[2:])))
    found = redivided(nodes, [share("a"), share("b")], running, Limits(3.0))
    assert found.change
    assert spent(found) <= 3.0
    assert sorted(len(one) for one in pipelines(found)) == [1, 2]


def test_what_runs_does_not_stay_where_it_costs_more_than_was_counted(share) -> None:  # type: ignore[no-untyped-def]
    """It serves as well, on the dear one of the nodes that the share may have."""

    def cheapest(problem: Problem, budget: SearchBudget) -> Solution:
        return Solution((on(min(problem.nodes, key=lambda one: one.kind.price_per_hour)),))

    dear, cheap = [node("dear-1", 2.0), node("dear-2", 2.0)], node("cheap")
    one = replace(share("a"), planner=cheapest, running=(on(dear[1]),))
    (allotted,), _ = division.allot([*dear, cheap], [one], Limits(1.0), UNLIMITED)
    assert cost_per_hour(allotted.pipelines) <= 1.0


def test_whom_nothing_can_serve_beside_the_others_is_named_and_the_others_are_served(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("n-1"), node("n-2")]
    shares = [share("a"), share("b"), share("c")]
    found = redivided(nodes, shares, ((), (), (on(nodes[0]), on(nodes[1]))), Limits(2.0))
    assert found.change
    served = [bool(one) for one in pipelines(found)]
    assert sum(served) == 2
    left_out = shares[served.index(False)].name
    assert f"{left_out}: cannot be served beside the others within the limits" in found.reasons


def test_where_nothing_fits_the_limits_nothing_is_answered(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("n-1"), node("n-2")]
    with pytest.raises(FailedPrecondition, match="keeps to the limits"):
        redivided(nodes, [share("a"), share("b")], ((), ()), Limits(0.5))


def test_the_fewest_and_the_most_nodes_are_kept_to(share) -> None:  # type: ignore[no-untyped-def]
    nodes = [node(f"n-{i}", 0.0) for i in range(4)]
    running = ((), tuple(map(on, nodes[:3])))
    found = redivided(nodes, [share("a"), share("b")], running, Limits(nodes_max=3))
    assert sum(map(len, pipelines(found))) == 3
    with pytest.raises(InvalidArgument) as caught:
        Limits(nodes_min=3, nodes_max=2)
    assert caught.value.field == "nodes_max"


@pytest.mark.parametrize(("budget", "count"), [(0.0, 4), (3.0, 3)])
def test_a_new_division_has_the_least_nodes_where_so_many_are_to_be_had(  # type: ignore[no-untyped-def]
    share, budget: float, count: int
) -> None:
    """Both mind cost, and one node each would carry what arrives."""
    quiet = Workload(arrival_rate_rps=0.001)
    kind = ObjectiveKind.THROUGHPUT_PER_COST
    shares = [share("a", kind, workload=quiet), share("b", kind, workload=quiet)]
    nodes = [node("b-1"), *(node(f"o#{i}") for i in range(5))]
    running = ((), (on(nodes[0]),))
    found = redivided(nodes, shares, running, Limits(budget, nodes_min=4, nodes_max=5))
    assert sum(len(p.stages) for one in pipelines(found) for p in one) == count
    assert all(pipelines(found))
    assert not budget or spent(found) <= budget


def test_who_is_served_already_grows_to_the_least_nodes_whatever_it_gains(share) -> None:  # type: ignore[no-untyped-def]
    quiet = Workload(arrival_rate_rps=0.001)
    kind = ObjectiveKind.THROUGHPUT_PER_COST
    shares = [share("a", kind, workload=quiet), share("b", kind, workload=quiet)]
    nodes = [node("a-1"), node("b-1"), node("o#1")]
    running = ((on(nodes[0]),), (on(nodes[1]),))
    found = redivided(nodes, shares, running, Limits(nodes_min=3))
    assert sum(map(len, pipelines(found))) == 3
    assert [one.lacks for one in found.alternatives] == ["less nodes than the least"]
    assert not redivided(nodes, shares, running, Limits(nodes_min=2)).change


def most_served(nodes: Sequence[CandidateNode], count: int, budget: float, need: int) -> int:
    """Of models that need so many equal nodes each, the cheapest first."""
    prices = sorted(one.kind.price_per_hour for one in nodes)
    for served in range(count, 0, -1):
        if sum(prices[: served * need]) <= budget and len(prices) >= served * need:
            return served
    return 0


@pytest.mark.parametrize("seed", range(4))
def test_no_model_that_can_be_served_is_left_unserved(share, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Whoever has spent it, and however few divisions are looked at."""
    prices = [(0.5, 1.0, 1.5)[(seed + i) % 3] for i in range(6)]
    need = 1 + seed % 2
    nodes = [node(f"n-{i}", price, gib=(64, 12)[seed % 2]) for i, price in enumerate(prices)]
    greedy = tuple(on(*nodes[i : i + need]) for i in range(0, 4, need))
    budget = cost_per_hour(greedy)
    shares = [share("a"), share("b")]
    found = redivided(nodes, shares, ((), greedy), Limits(budget))
    assert spent(found) <= budget + 1e-9
    served = sum(bool(one) for one in pipelines(found))
    assert served == most_served(nodes, 2, budget, need)


def test_a_hill_that_is_climbed_serves_as_many(share, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(division, "ALL_OF", 0)
    nodes = [node("b-1"), node("b-2"), node("b-3"), *(node(f"o#{i}", 1.2) for i in range(4))]
    running = ((), tuple(map(on, nodes[:3])))
    found = redivided(nodes, [share("a"), share("b")], running, Limits(3.0))
    assert [len(one) for one in pipelines(found)] == [1, 2]
    assert spent(found) <= 3.0
    assert set(found.plans[1].pipelines) < set(running[1])


def test_who_minds_cost_and_has_few_requests_gives_nodes_up(share) -> None:  # type: ignore[no-untyped-def]
    quiet = Workload(arrival_rate_rps=0.001)
    nodes = [node(f"b-{i}") for i in range(3)]
    shares = [share("a"), share("b", ObjectiveKind.THROUGHPUT_PER_COST, workload=quiet)]
    found = redivided(nodes, shares, ((), tuple(map(on, nodes))), Limits(3.0))
    assert [len(one) for one in pipelines(found)] == [2, 1]


def test_a_lost_model_s_share_says_what_it_asks_for(share) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgument) as caught:
        redivide([node("n")], [], [], Limits(), UNLIMITED)
    assert caught.value.field == "deployments"
    assert replace(share("a"), holders=frozenset({"n"})).holders == {"n"}
