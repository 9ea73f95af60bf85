"""Objectives and limits change the plan as they say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import CandidateNode, Workload, described
from services.placement.estimate.estimator import estimate_plan
from services.placement.search import choice
from services.placement.search.budget import Unlimited
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem
from services.placement.search.registry import NAMES, planner
from services.placement.search.risk import down_shares, goodput_rps, outages
from services.placement.search.score import score, violation


def nodes_in(pools: dict[str, float], count: int, spot: bool = True) -> tuple[CandidateNode, ...]:
    """g6e.12xlarge nodes by pool, with its interruptions an hour."""
    return tuple(
        CandidateNode(
            f"{pool}-{i}",
            described(
                load_catalogue(),
                instance_type="g6e.12xlarge",
                pool=pool,
                spot=spot,
                interruptions_per_hour=rate,
            ),
        )
        for pool, rate in pools.items()
        for i in range(count)
    )


def planned(problem: Problem):
    pipelines = shuntserve.plan(problem, Unlimited()).pipelines
    return pipelines, estimate_plan(problem.costs, pipelines)[0]


def test_throughput_per_cost_beats_the_ratio_of_most_throughput(make_costs, paper_cluster):
    costs = make_costs()
    cheap = Problem(costs, paper_cluster, Objective(ObjectiveKind.THROUGHPUT_PER_COST))
    most, _ = planned(Problem(costs, paper_cluster))
    best, _ = planned(cheap)
    assert score(cheap, best) > score(cheap, most)


def test_a_budget_is_kept(make_costs, paper_cluster):
    for budget in (5.0, 8.0, 11.0):
        _, total = planned(Problem(make_costs(), paper_cluster, Objective(budget_per_hour=budget)))
        assert total.cost_per_hour <= budget


def test_a_rate_is_carried_at_the_least_cost(make_costs, paper_cluster):
    costs = make_costs(workload=Workload(763, 232, 3.0))
    problem = Problem(costs, paper_cluster, Objective(ObjectiveKind.THROUGHPUT_PER_COST))
    _, total = planned(problem)
    _, most = planned(Problem(make_costs(), paper_cluster))
    assert total.throughput_rps >= 3.0
    assert total.cost_per_hour < most.cost_per_hour


@pytest.mark.parametrize(
    "kind", [ObjectiveKind.THROUGHPUT_PER_COST, ObjectiveKind.GOODPUT_PER_COST]
)
def test_latency_targets_are_kept_by_more_nodes_than_carry_what_arrives(make_costs, kind):
    """Where all of them are busy, requests wait: a plan has as much room as that takes."""
    nodes = nodes_in({"pool": 0.0}, 8)
    costs = make_costs("llama-3.1-8b", "measured")
    _, one = planned(Problem(costs, nodes[:1]))
    costs = costs.at_rate(1.9 * one.throughput_rps)
    _, busy = planned(Problem(costs, nodes, Objective(ObjectiveKind.THROUGHPUT_PER_COST)))
    timed = Problem(costs, nodes, Objective(kind, tpot_target_s=0.6 * busy.load.tpot_s))
    found, roomy = planned(timed)
    assert violation(timed, found) == ("", None)
    assert busy.cost_per_hour < roomy.cost_per_hour < 3 * busy.cost_per_hour


@pytest.mark.parametrize(
    "kind", [ObjectiveKind.THROUGHPUT_PER_COST, ObjectiveKind.GOODPUT_PER_COST]
)
def test_where_more_arrives_than_all_nodes_carry_each_room_is_not_tried(
    make_costs, monkeypatch, kind
):
    rooms = []

    def asked(ground, members, budget, room=1.0):
        rooms.append(room)
        return choice.chooser(ground, members, budget, room)

    monkeypatch.setattr(shuntserve, "chooser", asked)
    costs = make_costs(workload=Workload(arrival_rate_rps=1e4))
    objective = Objective(kind, tpot_target_s=1e-6)
    found = shuntserve.plan(
        Problem(costs, nodes_in({"a": 0.5, "b": 0.1}, 3), objective), Unlimited()
    )
    assert found.late
    assert set(rooms) == {1.0, shuntserve.ROOMS[0], shuntserve.ROOMS[-1]}


def test_the_on_demand_share_is_kept(make_costs):
    firm = nodes_in({"firm": 0.0}, 2, spot=False)
    shaky = nodes_in({"shaky": 1.0}, 4)
    objective = Objective(min_on_demand_share=0.5)
    pipelines, total = planned(Problem(make_costs(), (*firm, *shaky), objective))
    paid = sum(
        s.node.kind.price_per_hour for p in pipelines for s in p.stages if not s.node.kind.spot
    )
    assert paid >= 0.5 * total.cost_per_hour - 1e-9


@pytest.mark.parametrize("kind", ObjectiveKind)
def test_limits_are_kept_whatever_the_objective(make_costs, paper_cluster, kind):
    """The cheapest nodes are on the spot market, and the best ratio alone would take just them."""
    spot = tuple(
        replace(node, kind=replace(node.kind, spot=node.kind.type_name == "g6e.xlarge"))
        for node in paper_cluster
    )
    costs = make_costs("qwen3-32b", workload=Workload(763, 232, 12.0))
    objective = Objective(kind, min_on_demand_share=0.9, budget_per_hour=8.0)
    pipelines, total = planned(Problem(costs, spot, objective))
    paid = sum(
        s.node.kind.price_per_hour for p in pipelines for s in p.stages if not s.node.kind.spot
    )
    assert paid >= 0.9 * total.cost_per_hour - 1e-9
    assert total.cost_per_hour <= 8.0


def test_a_latency_target_is_kept_or_the_plan_says_how_late_it_is(make_costs, paper_cluster):
    costs = make_costs(workload=Workload(763, 232, 1.0))
    easy = Problem(costs, paper_cluster, Objective(tpot_target_s=1.0, ttft_target_s=30.0))
    _, total = planned(easy)
    assert total.load.tpot_s <= 1.0
    found = shuntserve.plan(
        Problem(costs, paper_cluster, Objective(tpot_target_s=0.001), runners_up=2), Unlimited()
    )
    plain = shuntserve.plan(Problem(costs, paper_cluster, runners_up=2), Unlimited())
    assert re.fullmatch(r"TPOT 0\.\d{3} s against 0\.001 s", found.late)
    assert replace(found, late="") == plain, "the same as without targets, and nothing less"
    assert plain.runners_up


class Looks:
    """A budget that is over after so many looks at it."""

    def __init__(self, left: int) -> None:
        self.left = left

    def expired(self) -> bool:
        self.left -= 1
        return self.left < 0

    def remaining_s(self) -> float:
        return 60.0


@pytest.mark.parametrize("kind", ObjectiveKind)
def test_targets_that_cannot_be_kept_take_no_time_from_the_plan_without_them(make_costs, kind):
    """As much time as the search without targets takes is enough for the same plan."""
    nodes = cluster({"g5.12xlarge": 2, "g6.12xlarge": 2, "g6e.xlarge": 4})
    costs = make_costs("qwen3-32b", "measured", Workload(763, 232, 10.0))
    plain = Looks(1_000_000)
    wanted = shuntserve.plan(Problem(costs, nodes, Objective(kind)), plain)
    timed = Problem(costs, nodes, Objective(kind, tpot_target_s=0.001))
    budget = Looks(1_000_000 - plain.left)
    found = shuntserve.plan(timed, budget)
    assert found.pipelines == wanted.pipelines
    assert found.late
    assert budget.left < 0, "what else there was time for was looked at"
    assert not found.complete


def test_where_time_is_out_before_there_is_a_plan_the_plain_one_is_made_and_says_it_is_late(
    make_costs, paper_cluster
):
    problem = Problem(make_costs(), paper_cluster, Objective(tpot_target_s=0.001))
    found = shuntserve.plan(problem, Looks(0))
    assert found.pipelines
    assert found.late.startswith("TPOT")
    dear = replace(problem, objective=Objective(tpot_target_s=0.001, budget_per_hour=5.0))
    with pytest.raises(DeadlineExceeded):  # the plain planner would not keep the budget
        shuntserve.plan(dear, Looks(0))


def test_a_plan_spreads_over_pools_when_that_pays(make_costs):
    costs = make_costs("qwen3-32b", workload=Workload(763, 232, 6.0))
    objective = Objective(ObjectiveKind.GOODPUT_PER_COST, recovery_s=1800.0)
    cluster = nodes_in({"a": 1.0, "b": 1.0}, 4)
    problem = Problem(costs, cluster, objective)
    pipelines, _ = planned(problem)
    # No pipeline touches two pools: it would be down with either.
    assert all(len({s.node.kind.pool for s in p.stages}) == 1 for p in pipelines)
    risky = nodes_in({"a": 20.0, "b": 0.01}, 4)
    chosen, _ = planned(Problem(costs, risky, objective))
    assert {s.node.kind.pool for p in chosen for s in p.stages} == {"b"}


def test_spreading_carries_more_of_a_rate_than_one_pool():
    down = {"a": 0.2, "b": 0.2}

    class Fake:
        def __init__(self, pool: str) -> None:
            kind = described(load_catalogue(), instance_type="g6e.xlarge", pool=pool)
            self.stages = (type("S", (), {"node": CandidateNode(pool, kind)})(),)

    same, apart = [Fake("a"), Fake("a")], [Fake("a"), Fake("b")]

    def each_ten(places):
        return 10.0 * len(places)

    assert goodput_rps(apart, each_ten, down, 10.0) == pytest.approx(10 * (1 - 0.04))
    assert goodput_rps(same, each_ten, down, 10.0) == pytest.approx(10 * 0.8)
    assert goodput_rps(same, each_ten, down) == pytest.approx(goodput_rps(apart, each_ten, down))


def test_outages_share_all_the_time():
    few = down_shares(nodes_in({"a": 2.0, "b": 0.5, "c": 0.0}, 1), 600)
    assert few["a"] == pytest.approx(2 * (1 / 6) / (1 + 2 / 6))
    assert sum(share for share, _ in outages(few)) == pytest.approx(1.0)
    many = {f"p{i}": 0.05 for i in range(14)}
    assert sum(share for share, _ in outages(many)) == pytest.approx(1.0)


def test_a_uniform_degree_at_which_no_layer_fits_leaves_the_others(make_costs):
    costs = make_costs("qwen3-32b", "measured")
    small = described(
        load_catalogue(), device_type="l4", device_count=4, memory_bytes=3_400_000_000
    )
    nodes = tuple(CandidateNode(f"n{i}", small) for i in range(32))
    assert costs.of(small, 1).free_bytes(1, False, False) < 0
    solution = shuntserve.plan(Problem(costs, nodes, Objective(uniform_tp=True)), Unlimited())
    assert {stage.tp for p in solution.pipelines for stage in p.stages} == {4}


def test_a_uniform_degree_that_misses_a_target_leaves_the_others(make_costs):
    costs = make_costs("qwen3-32b", "measured")
    objective = Objective(uniform_tp=True, tpot_target_s=0.1)
    problem = Problem(costs, cluster({"g6.12xlarge": 4}), objective)
    solution = shuntserve.plan(problem, Unlimited())
    assert {stage.tp for p in solution.pipelines for stage in p.stages} == {4}
    assert not solution.late
    nothing = replace(problem, objective=replace(objective, tpot_target_s=0.01))
    late = shuntserve.plan(nothing, Unlimited())
    assert late.late.startswith("TPOT")
    plain = replace(problem, objective=Objective(uniform_tp=True))
    assert late.pipelines == shuntserve.plan(plain, Unlimited()).pipelines


def test_a_search_that_was_cut_at_one_degree_did_not_end_by_itself(make_costs, monkeypatch):
    """Whichever degree's plan is the best: the other one might have had a better one."""
    costs, of_degree = make_costs("qwen3-32b", "measured"), shuntserve._plan_at
    problem = Problem(costs, cluster({"g6.12xlarge": 4}), Objective(uniform_tp=True))
    whole = shuntserve.plan(problem, Unlimited())
    assert whole.complete
    (degree,) = {stage.tp for p in whole.pipelines for stage in p.stages}

    def cut(problem, tp, budget, effort):
        if tp != degree:
            raise DeadlineExceeded("its part of the time is over")
        return of_degree(problem, tp, budget, effort)

    monkeypatch.setattr(shuntserve, "_plan_at", cut)
    assert shuntserve.plan(problem, Unlimited()) == replace(whole, complete=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("speed", [5e-324, 1e-300, 1e-9])
def test_a_node_slower_than_can_be_counted_ends_no_search(make_costs, name, speed):
    kind = described(load_catalogue(), device_type="l4", relative_speed=speed)
    problem = Problem(
        make_costs("llama-3.1-8b", "measured"), (CandidateNode("a", kind), CandidateNode("b", kind))
    )
    solution = planner(name)(problem, Unlimited())
    total, _ = estimate_plan(problem.costs, solution.pipelines)
    assert 0 < total.throughput_rps < 1


def test_helix_says_so_when_no_node_holds_a_sequence(make_costs):
    costs = make_costs("llama-3.1-8b", "measured", Workload(1 << 24, 1))
    with pytest.raises(FailedPrecondition, match="does not fit"):
        planner("helix")(Problem(costs, cluster({"g6.xlarge": 2})), Unlimited())
