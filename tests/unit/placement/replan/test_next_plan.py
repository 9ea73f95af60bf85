"""A change of plan moves no more than it must, and only when it pays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.placement_clusters import cluster
from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import Workload
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.replan.change import Change
from services.placement.replan.moves import Handover, ResidentStage, kept_bytes, stage_bytes
from services.placement.replan.next_plan import replan
from services.placement.replan.options import ALL, STAY
from services.placement.search.budget import SearchBudget, Unlimited
from services.placement.search.planners import shuntserve, spotserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem, Solution
from tests.unit.placement.replan.test_redivision import node, on


@pytest.fixture
def running(make_costs):
    costs = make_costs("qwen3-32b", "measured")
    problem = Problem(costs, cluster({"g5.12xlarge": 4, "g6e.xlarge": 6, "g6.12xlarge": 3}))
    return problem, shuntserve.plan(problem, Unlimited()).pipelines


def without(problem: Problem, node_id: str) -> Problem:
    return replace(problem, nodes=tuple(n for n in problem.nodes if n.node_id != node_id))


def test_a_lost_node_leaves_other_pipelines_alone(running):
    problem, pipelines = running
    lost = pipelines[0].node_ids[0]
    found = replan(without(problem, lost), Change(pipelines, {}), shuntserve.plan, Unlimited())
    assert all(p in found.pipelines for p in pipelines[1:])
    assert lost not in [node_id for p in found.pipelines for node_id in p.node_ids]
    staying = {node_id for p in pipelines[1:] for node_id in p.node_ids}
    moves = {move.stage.node.node_id: move for move in found.node_moves}
    assert all(moves[node_id].load_bytes == 0 for node_id in staying)
    for move in found.node_moves:
        whole = stage_bytes(problem.costs.model, move.stage.start, move.stage.end)
        assert move.load_bytes + move.resident_bytes == whole


def test_nothing_changes_when_nothing_changed(running):
    problem, pipelines = running
    found = replan(problem, Change(pipelines, {}), shuntserve.plan, Unlimited())
    assert not found.change
    assert found.pipelines == pipelines
    assert found.time_to_serve_s == 0


def test_capacity_that_comes_back_is_used(running):
    problem, pipelines = running
    lost = pipelines[0].node_ids[0]
    after = replan(without(problem, lost), Change(pipelines, {}), shuntserve.plan, Unlimited())
    more = Change(after.pipelines, {}, horizon_s=1e5, improve=True)
    back = replan(problem, more, shuntserve.plan, Unlimited())

    def rate(chosen):
        return sum(estimate_pipeline(problem.costs, p).throughput_rps for p in chosen)

    assert back.change
    assert rate(back.pipelines) > rate(after.pipelines)


def test_a_gain_smaller_than_the_move_is_left_alone(running):
    problem, pipelines = running
    lost = pipelines[0].node_ids[0]
    after = replan(without(problem, lost), Change(pipelines, {}), shuntserve.plan, Unlimited())
    short = Change(after.pipelines, {}, horizon_s=1.0, load_bytes_per_s=1e6, improve=True)
    back = replan(problem, short, shuntserve.plan, Unlimited())
    assert not back.change
    assert back.pipelines == after.pipelines


def test_a_workload_outside_the_plan_is_a_change_like_a_loss(running, make_costs):
    problem, pipelines = running
    long = make_costs("qwen3-32b", "measured", Workload(60_000, 4_000))
    change = Change(pipelines, {}, horizon_s=1e5, improve=True)
    found = replan(replace(problem, costs=long), change, shuntserve.plan, Unlimited())
    assert all(estimate_pipeline(long, p).max_batch >= 1 for p in found.pipelines)
    assert found.change


def test_resident_weights_decide_which_of_equal_nodes_takes_a_slot(make_costs):
    costs = make_costs("qwen3-32b")
    problem = Problem(costs, cluster({"g6.12xlarge": 3}))
    first = shuntserve.plan(problem, Unlimited()).pipelines
    held = {
        stage.node.node_id: (ResidentStage(other.start, other.end, other.tp),)
        for pipeline in first
        for stage, other in zip(pipeline.stages, reversed(pipeline.stages), strict=True)
    }
    found = replan(problem, Change((), held), shuntserve.plan, Unlimited())
    assert sum(move.load_bytes for move in found.node_moves) == 0


def test_weights_at_another_degree_are_not_reused(make_costs):
    model = make_costs().model
    assert kept_bytes(model, [ResidentStage(0, 10, 4)], 0, 10, 4) == stage_bytes(model, 0, 10)
    assert kept_bytes(model, [ResidentStage(0, 10, 4)], 0, 10, 2) == 0
    assert kept_bytes(model, [ResidentStage(5, 15, 4)], 0, 10, 4) == 5 * model.layer_bytes


def test_a_kv_cache_is_moved_only_with_notice_enough(running):
    problem, pipelines = running
    lost = pipelines[0].node_ids[-1]
    left = without(problem, lost)

    def handover(notice_s: float) -> Handover:
        change = Change(
            pipelines,
            {},
            notice_s=notice_s,
            generations=(200,) * len(pipelines),
            tokens_per_generation=4000,
        )
        found = replan(left, change, shuntserve.plan, Unlimited())
        assert [m.running_pipeline for m in found.generation_moves] == [0]
        return found.generation_moves[0].handover

    assert handover(0.0) is Handover.REPLAY
    assert handover(1e5) is Handover.TRANSFER


def test_nothing_left_to_plan_with_is_said(running):
    problem, pipelines = running
    small = replace(problem, nodes=problem.nodes[-1:])
    with pytest.raises(FailedPrecondition, match="GiB"):
        replan(
            replace(small, nodes=cluster({"g4dn.xlarge": 1})),
            Change(pipelines, {}),
            shuntserve.plan,
            Unlimited(),
        )
    with pytest.raises(InvalidArgument, match="horizon_s"):
        Change(pipelines, {}, horizon_s=float("inf"))


def test_what_is_left_stays_when_time_is_out(running):
    problem, pipelines = running
    lost = pipelines[0].node_ids[0]

    def late(*_: object):
        raise DeadlineExceeded("late")

    found = replan(without(problem, lost), Change(pipelines, {}, improve=True), late, Unlimited())
    assert found.pipelines == pipelines[1:]


@pytest.mark.parametrize("end", [0, 65, 2**32 - 1])
def test_a_pipeline_that_lost_a_node_is_checked_too(running, end):
    problem, pipelines = running
    first, *others = pipelines[0].stages
    wrong = replace(pipelines[0], stages=(replace(first, end=end), *others))
    change = Change((wrong,), {}, generations=(1,), tokens_per_generation=1)
    with pytest.raises(InvalidArgument, match="layer"):
        replan(without(problem, first.node.node_id), change, shuntserve.plan, Unlimited())


def nodes_of(found):
    return sum(len(pipeline.stages) for pipeline in found.pipelines)


def test_no_plan_has_more_nodes_than_the_most(running):
    problem, pipelines = running
    count = sum(len(p.stages) for p in pipelines)
    for most in (count - 1, count // 2):
        change = Change(pipelines, {}, horizon_s=1e5, improve=True, nodes_max=most)
        assert nodes_of(replan(problem, change, shuntserve.plan, Unlimited())) <= most


def test_what_may_be_had_takes_the_place_of_what_runs_where_no_more_nodes_may_be(running):
    problem, _ = running
    slow = tuple(n for n in problem.nodes if n.kind.type_name == "g6.12xlarge")
    fast = tuple(n for n in problem.nodes if n.kind.type_name == "g5.12xlarge")
    before = shuntserve.plan(replace(problem, nodes=slow), Unlimited()).pipelines
    most = sum(len(p.stages) for p in before)
    offered = replace(problem, nodes=(*slow, *fast))
    change = Change(before, {}, horizon_s=1e6, improve=True, nodes_max=most)
    found = replan(offered, change, shuntserve.plan, Unlimited())
    assert nodes_of(found) <= most
    assert {n.node_id for n in fast} & {name for p in found.pipelines for name in p.node_ids}


def test_a_plan_has_the_least_nodes_where_there_are_so_many(running):
    problem, pipelines = running
    little = replace(
        problem,
        costs=problem.costs.at_rate(1e-3),
        objective=Objective(ObjectiveKind.THROUGHPUT_PER_COST),
    )
    count = sum(len(p.stages) for p in pipelines)
    free = Change(pipelines, {}, horizon_s=1e5, improve=True)
    assert nodes_of(replan(little, free, shuntserve.plan, Unlimited())) < count
    floor = replace(free, nodes_min=count)
    assert nodes_of(replan(little, floor, shuntserve.plan, Unlimited())) == count
    with pytest.raises(InvalidArgument, match="nodes_max"):
        replace(floor, nodes_max=count - 1)


@pytest.fixture
def quiet(make_costs):
    """A cluster for whose requests one node is enough."""

    def make(*nodes, budget=0.0):
        costs = make_costs("llama-3.1-8b", workload=Workload(arrival_rate_rps=0.001))
        return Problem(costs, nodes, Objective(ObjectiveKind.THROUGHPUT_PER_COST, budget))

    return make


OFFERED = tuple(node(f"offer#{i}") for i in range(1, 5))


@pytest.mark.parametrize("improve", [False, True])
def test_a_mesh_below_the_least_nodes_grows_back_where_something_is_to_be_had(quiet, improve):
    left = on(node("n-1"))
    change = Change((left,), {}, improve=improve, nodes_min=3, nodes_max=4)
    found = replan(quiet(node("n-1"), *OFFERED), change, shuntserve.plan, Unlimited())
    assert found.change
    assert left in found.pipelines
    assert nodes_of(found) == 3, "and no more than that"
    assert "3 nodes where there were 1, for 3 are the least" in found.reasons
    assert {one.plan: one.lacks for one in found.alternatives}[STAY] == "1 nodes are less than 3"
    nothing = replan(quiet(node("n-1")), change, shuntserve.plan, Unlimited())
    assert (nothing.change, nothing.pipelines) == (False, (left,))
    within = replan(quiet(node("n-1"), *OFFERED, budget=2.0), change, shuntserve.plan, Unlimited())
    assert nodes_of(within) == 2, "as many as there is money for"


def test_who_holds_the_least_nodes_goes_where_they_are_cheaper(quiet):
    """One node would do for what arrives, and is too few."""
    dear = [node(f"n-{i}", 0.07) for i in (1, 2)]
    cheap = [node(f"offer#{i}", 0.03) for i in range(1, 5)]
    running = tuple(map(on, dear))
    change = Change(running, {}, improve=True, nodes_min=2, nodes_max=4, horizon_s=1800.0)
    problem = quiet(*dear, *cheap)
    found = replan(problem, change, shuntserve.plan, Unlimited())
    assert {name for p in found.pipelines for name in p.node_ids} == {"offer#1", "offer#2"}
    assert found.gain > 1.0
    short = replace(change, horizon_s=1.0, load_bytes_per_s=1e9)
    stays = replan(problem, short, shuntserve.plan, Unlimited())
    assert not stays.change, "the move costs more than it saves"


def test_a_plan_of_one_choice_grows_to_the_least_nodes_by_another_choice(quiet):
    nodes = tuple(node(f"n-{i}", 0.0) for i in range(3))
    change = Change((on(nodes[0]),), {}, anew=True, nodes_min=3)
    found = replan(quiet(*nodes), change, spotserve.plan, Unlimited())
    assert nodes_of(found) == 3
    assert found.name.startswith(ALL)


def test_what_wants_most_throughput_gains_by_more_than_arrives(running):
    problem, pipelines = running
    quiet = replace(problem, costs=problem.costs.at_rate(1e-3))
    change = Change(pipelines[:1], {}, horizon_s=1e5, improve=True)
    assert replan(quiet, change, shuntserve.plan, Unlimited()).gain > 0.5


def test_a_plan_of_one_choice_is_left_whole_or_made_anew(make_costs):
    nodes = cluster({"g6.12xlarge": 5})
    problem = Problem(make_costs("qwen3-32b", "measured"), nodes)
    two = spotserve.plan(replace(problem, nodes=nodes[:4]), Unlimited()).pipelines
    for lost in (two[0].node_ids[0], ""):
        left = without(problem, lost)
        anew = replan(left, Change(two, {}, anew=True), spotserve.plan, Unlimited())
        names = {anew.name, *(one.plan for one in anew.alternatives)}
        assert names <= {STAY, ALL}
        assert ALL in names
        assert len({len(pipeline.stages) for pipeline in anew.pipelines}) == 1
        free = replan(left, Change(two, {}), spotserve.plan, Unlimited())
        others = {free.name, *(one.plan for one in free.alternatives)} - {STAY, ALL}
        assert others, "otherwise the free nodes are used beside what is left"


def asked_for(make_costs, rate_rps: float, count: int, **targets: float) -> Problem:
    """So many nodes of one kind and price, of which the first has the only pipeline."""
    costs = make_costs("llama-3.1-8b", workload=Workload(arrival_rate_rps=rate_rps))
    nodes = tuple(node(f"n-{number}", 0.5) for number in range(count))
    return Problem(costs, nodes, Objective(ObjectiveKind.THROUGHPUT_PER_COST, **targets))


def one_rps(make_costs) -> float:
    """Of one of those nodes."""
    problem = asked_for(make_costs, 0.0, 1)
    return estimate_pipeline(problem.costs, on(*problem.nodes)).throughput_rps


@pytest.mark.parametrize("improve", [False, True])
def test_where_nothing_carries_what_arrives_as_much_as_can_be_is_carried(make_costs, improve):
    """A request for a dollar is as dear on one node as on four; three of four would be lost."""
    problem = asked_for(make_costs, 100 * one_rps(make_costs), 4)
    change = Change((on(problem.nodes[0]),), {}, horizon_s=1e4, improve=improve)
    found = replan(problem, change, shuntserve.plan, Unlimited())
    assert nodes_of(found) == 4
    assert found.gain > 1
    short = replace(change, horizon_s=1.0, load_bytes_per_s=1e6)
    assert not replan(problem, short, shuntserve.plan, Unlimited()).change, "it pays for no move"


def test_of_plans_that_are_late_whatever_is_done_the_cheapest_that_carries_all_is_made(make_costs):
    rate = 1.5 * one_rps(make_costs)
    problem = asked_for(make_costs, rate, 4, tpot_target_s=1e-6)
    found = replan(problem, Change((), {}), shuntserve.plan, Unlimited())
    assert nodes_of(found) == 2
    assert found.late.startswith("TPOT")
    kept = Change(found.pipelines, {}, horizon_s=1e4, improve=True)
    stays = replan(problem, kept, shuntserve.plan, Unlimited())
    assert not stays.change
    assert f"it is late: {found.late}" in stays.reasons
    first = shuntserve.plan(problem, Unlimited())
    assert (first.pipelines, first.late) == (found.pipelines, found.late), "one rule for both"
    dear = [node(f"dear-{number}", 2.0) for number in range(2)]
    moved = Change(tuple(map(on, dear)), {}, horizon_s=1e5, improve=True)
    both = replace(problem, nodes=(*problem.nodes, *dear))
    cheaper = replan(both, moved, shuntserve.plan, Unlimited())
    assert {name[:2] for p in cheaper.pipelines for name in p.node_ids} == {"n-"}


@pytest.mark.parametrize(("improve", "seconds"), [(False, [60.0]), (True, [30.0, 60.0])])
def test_the_plan_of_free_nodes_leaves_half_of_the_time_to_that_of_all(  # type: ignore[no-untyped-def]
    make_costs, improve, seconds
):
    class Minute(Unlimited):
        def remaining_s(self) -> float:
            return 60.0

    given = list[float]()

    def search(problem: Problem, budget: SearchBudget) -> Solution:
        given.append(budget.remaining_s())
        return Solution((on(problem.nodes[0]),))

    problem = asked_for(make_costs, 100 * one_rps(make_costs), 3)
    change = Change((on(problem.nodes[0]),), {}, improve=improve)
    replan(problem, change, search, Minute())
    assert given == seconds


def test_where_not_all_is_carried_no_more_is_given_up_than_a_change_must_gain(make_costs):
    """Each dear node is worth less than its price; both are more than the hysteresis: a plan
    without them would take them again."""
    arriving = Workload(arrival_rate_rps=100 * one_rps(make_costs))
    costs = make_costs("llama-3.1-8b", workload=arriving)
    nodes = (*(node(f"n-{i}", 0.3) for i in range(15)), *(node(f"dear-{i}", 3.0) for i in range(2)))
    problem = Problem(costs, nodes, Objective(ObjectiveKind.THROUGHPUT_PER_COST))

    def each_alone(asked: Problem, _: object) -> Solution:
        return Solution(tuple(map(on, asked.nodes)))

    running, counts = tuple(map(on, nodes)), []
    for _ in range(4):
        change = Change(running, {}, horizon_s=1e5, improve=True, hysteresis=0.1)
        found = replan(problem, change, each_alone, Unlimited())
        running = found.pipelines
        counts.append(nodes_of(found))
    assert counts == [16] * 4
    told = [one.lacks for one in found.alternatives]
    assert any("fewer requests over the horizon" in one for one in told), told
