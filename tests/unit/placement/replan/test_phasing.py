"""Phases follow the workload, and nothing else of a plan does."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition
from services.common.phases import PipelinePhase
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    Workload,
    described,
)
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.replan.change import Change
from services.placement.replan.next_plan import NextPlan, replan
from services.placement.replan.phasing import MARGIN
from services.placement.replan.worth import rate_of
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, Problem
from services.placement.search.score import goodput, worst_miss
from services.placement.search.transport import kv_rate
from tests.unit.placement.conftest import MakeCosts

BOTH, PREFILL, DECODE = PipelinePhase.BOTH, PipelinePhase.PREFILL, PipelinePhase.DECODE
TYPES = ("g6e.xlarge", "g5.xlarge", "g5.xlarge", "g6.xlarge")
LAYERS = 32


def alone(number: int, type_name: str) -> PlacedPipeline:
    node = CandidateNode(f"n{number}", described(load_catalogue(), instance_type=type_name))
    return PlacedPipeline((PlacedStage(node, 0, LAYERS, 1),))


RUNNING = tuple(alone(*one) for one in enumerate(TYPES))


def problem_of(
    make_costs: MakeCosts, workload: Workload, objective: Objective | None = None
) -> Problem:
    nodes = tuple(stage.node for pipeline in RUNNING for stage in pipeline.stages)
    costs = make_costs("llama-3.1-8b", "measured", workload)
    return Problem(costs, nodes, objective or Objective())


def phased(problem: Problem, budget: SearchBudget = UNLIMITED, **more: object) -> NextPlan:
    change = Change(more.pop("running", RUNNING), {}, phases_only=True, **more)  # type: ignore[arg-type]
    return replan(problem, change, shuntserve.plan, budget)


@pytest.mark.parametrize("workload", [Workload(2000, 30), Workload(800, 300), Workload(200, 800)])
def test_they_carry_as_much_as_any_phases_do(make_costs: MakeCosts, workload: Workload) -> None:
    problem = problem_of(make_costs, workload)
    best = max(
        rate_of(
            problem, [replace(p, phase=h) for p, h in zip(RUNNING, phases, strict=True)]
        ).throughput_rps
        for phases in itertools.product(PipelinePhase, repeat=len(RUNNING))
    )
    found = phased(problem, hysteresis=0.0)
    assert rate_of(problem, found.pipelines).throughput_rps == pytest.approx(best, rel=0.005)


def test_they_are_others_for_other_requests_and_no_node_loads_or_moves(
    make_costs: MakeCosts,
) -> None:
    """Short prompts with long answers are read by the nodes that decode worst."""
    found = phased(problem_of(make_costs, Workload(200, 800)))
    assert [pipeline.stages for pipeline in found.pipelines] == [p.stages for p in RUNNING]
    assert [pipeline.phase for pipeline in found.pipelines] == [DECODE] * 3 + [PREFILL]
    assert sum(move.load_bytes for move in found.node_moves) == 0
    assert (found.change, found.time_to_serve_s) == (True, 0.0)
    assert found.gained_requests > 0
    assert found.reasons[0] == "4 pipelines stay, 4 in another phase, 0 are new, 0 end"
    back = phased(problem_of(make_costs, Workload(2000, 30)), running=found.pipelines)
    assert back.change
    assert [pipeline.phase for pipeline in back.pipelines] == [BOTH] * 4


def test_a_target_that_prompts_break_is_kept_by_phases(make_costs: MakeCosts) -> None:
    """On nodes that do both, who decodes waits for prompts."""
    workload = Workload(1000, 200, arrival_rate_rps=4.0)
    problem = problem_of(make_costs, workload, Objective(ttft_target_s=2.0, tpot_target_s=0.065))
    assert worst_miss(problem, RUNNING)[0] > 1
    found = phased(problem)
    assert {pipeline.phase for pipeline in found.pipelines} >= {PREFILL, DECODE}
    assert worst_miss(problem, found.pipelines)[0] == 1
    total, each = estimate_plan(problem.costs, found.pipelines)
    assert total.load.ttft_s <= 2.0
    assert max(one.load.tpot_s for one in each) <= MARGIN * 0.065
    prefill = [e for e, p in zip(each, found.pipelines, strict=True) if p.phase is PREFILL]
    assert all(one.load.tpot_s == 0 < one.load.ttft_s for one in prefill)


def test_what_is_lost_takes_no_part_and_where_all_is_there_is_no_answer(
    make_costs: MakeCosts,
) -> None:
    problem = problem_of(make_costs, Workload(200, 800))
    left = replace(problem, nodes=problem.nodes[:3])
    found = phased(left)
    assert [p.stages for p in found.pipelines] == [p.stages for p in RUNNING[:3]]
    with pytest.raises(FailedPrecondition, match="no pipeline is there"):
        phased(replace(problem, nodes=problem.nodes[3:]), running=RUNNING[:3])


def test_limits_of_money_and_nodes_are_no_matter_of_phases(make_costs: MakeCosts) -> None:
    problem = problem_of(make_costs, Workload(200, 800), Objective(budget_per_hour=0.01))
    found = phased(problem, nodes_max=1)
    assert len(found.pipelines) == len(RUNNING)


def test_a_target_that_is_hardly_kept_is_no_reason_for_other_phases(
    make_costs: MakeCosts,
) -> None:
    workload, taken = Workload(1000, 200, arrival_rate_rps=4.0), 0
    for target_s in (0.02, 0.03, 0.04, 0.05, 0.06, 0.07):
        objective = Objective(ttft_target_s=2.0, tpot_target_s=target_s)
        problem = problem_of(make_costs, workload, objective)
        found = phased(problem)
        if found.change:
            _, each = estimate_plan(problem.costs, found.pipelines)
            with_margin = max(one.load.tpot_s for one in each) <= MARGIN * target_s
            carried = rate_of(problem, found.pipelines).throughput_rps
            assert with_margin or carried > rate_of(problem, RUNNING).throughput_rps
            taken += with_margin
    assert 0 < taken < 6


def test_one_phase_alone_keeps_no_target(make_costs: MakeCosts) -> None:
    """Who only reads prompts has no time a token that could be too long."""
    problem = problem_of(make_costs, Workload(1000, 200), Objective(tpot_target_s=0.001))
    assert worst_miss(problem, RUNNING[:1])[0] > 1
    found = phased(replace(problem, nodes=problem.nodes[:1]), running=RUNNING[:1])
    assert [pipeline.phase for pipeline in found.pipelines] == [BOTH]
    assert not found.change


def test_a_full_link_of_who_reads_prompts_is_a_target_missed_without_bound(
    make_costs: MakeCosts,
) -> None:
    """A g6e.xlarge reads long prompts faster than its network moves them."""
    reads, decodes = (
        replace(alone(number, name), phase=phase)
        for number, (name, phase) in enumerate((("g6e.xlarge", PREFILL), ("g6e.12xlarge", DECODE)))
    )
    workload = Workload(4000, 10)
    idle = problem_of(make_costs, workload)
    link_rps = kv_rate(idle.costs, reads)
    pipelines = (reads, decodes)
    assert link_rps < estimate_pipeline(idle.costs, reads).throughput_rps
    problem = problem_of(
        make_costs, replace(workload, arrival_rate_rps=link_rps), Objective(ttft_target_s=1e6)
    )
    miss, told, _ = worst_miss(problem, pipelines)
    assert (miss, told) == (math.inf, "the arrival rate is past saturation")
    below = replace(workload, arrival_rate_rps=0.9 * link_rps)
    kept = problem_of(make_costs, below, Objective(ttft_target_s=1e6))
    assert worst_miss(kept, pipelines)[0] == 1


def test_who_reads_prompts_has_no_more_of_them_than_its_link_has_time_for(
    make_costs: MakeCosts,
) -> None:
    """By what they read alone, the one with the slower network would be past saturation."""
    fast, slow, decodes, more = (
        replace(alone(number, name), phase=phase)
        for number, (name, phase) in enumerate(
            (
                ("g6e.12xlarge", PREFILL),
                ("g6e.xlarge", PREFILL),
                ("g6e.12xlarge", DECODE),
                ("g6e.12xlarge", DECODE),
            )
        )
    )
    workload, pipelines = Workload(4000, 10), (fast, slow, decodes, more)
    idle = problem_of(make_costs, workload)
    carried = rate_of(idle, pipelines).throughput_rps
    costs = problem_of(make_costs, replace(workload, arrival_rate_rps=0.8 * carried)).costs
    total, each = estimate_plan(costs, pipelines)
    assert math.isfinite(total.load.ttft_s)
    assert all(math.isfinite(one.load.end_to_end_s) for one in each)


class Over:
    """No time at all."""

    def expired(self) -> bool:
        return True

    def remaining_s(self) -> float:
        return 0.0


def test_without_time_they_stay(make_costs: MakeCosts) -> None:
    assert not phased(problem_of(make_costs, Workload(200, 800)), Over()).change


def test_goodput_counts_on_no_prefill_whose_decode_is_away(make_costs: MakeCosts) -> None:
    problem = problem_of(make_costs, Workload(200, 800))
    risky = tuple(
        replace(node, kind=replace(node.kind, pool=f"pool {number // 3}"))
        for number, node in enumerate(problem.nodes)
    )
    risky = tuple(
        replace(node, kind=replace(node.kind, interruptions_per_hour=30.0)) for node in risky
    )
    problem = replace(problem, nodes=risky)
    phases = (DECODE, DECODE, DECODE, PREFILL)
    split = [
        PlacedPipeline((replace(pipeline.stages[0], node=node),), phase)
        for pipeline, node, phase in zip(RUNNING, risky, phases, strict=True)
    ]
    rates = [estimate_pipeline(problem.costs, p).throughput_rps for p in split]
    whole = rate_of(problem, split).throughput_rps
    up = 1 / (1 + 30.0 * 120 / 3600)
    assert goodput(problem, split, rates) == pytest.approx(whole * up * up)


def test_who_decodes_waits_for_the_link_the_more_the_busier_it_is(make_costs: MakeCosts) -> None:
    """At most so many requests come over it at all."""
    costs = make_costs("llama-3.1-8b", "measured", Workload(2000, 30))
    decode = replace(RUNNING[0], phase=DECODE)
    most = kv_rate(costs, decode)
    assert most < estimate_pipeline(costs, decode).throughput_rps
    late, later = (
        estimate_pipeline(costs, decode, share * most).load.tpot_s for share in (0.5, 0.9)
    )
    assert later - late > 3 / most / 30
    assert math.isinf(estimate_pipeline(costs, decode, 1.01 * most).load.tpot_s)
    both = estimate_pipeline(costs, RUNNING[0], 1.01 * most)
    assert math.isfinite(both.load.tpot_s)
