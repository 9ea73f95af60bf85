"""How good a plan is under an objective, and which target it misses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.search.problem import ObjectiveKind, Problem
from services.placement.search.risk import down_shares, goodput_rps
from services.placement.search.transport import carried_rps


def score(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> float:
    """More is better; requests a second, over dollars an hour where cost counts."""
    if not pipelines:
        return -math.inf
    estimates = [estimate_pipeline(problem.costs, p) for p in pipelines]
    rates = [e.throughput_rps for e in estimates]
    rate = carried_rps(problem.costs, pipelines, rates)
    cost = sum(e.cost_per_hour for e in estimates)
    kind, arriving = problem.objective.kind, problem.costs.workload.arrival_rate_rps
    if kind is ObjectiveKind.THROUGHPUT:
        return rate
    if kind is ObjectiveKind.GOODPUT_PER_COST:
        rate = goodput(problem, pipelines, rates)
    elif arriving:
        rate = min(rate, arriving)
    return rate / cost if cost > 0 else math.inf


def goodput(
    problem: Problem, pipelines: Sequence[PlacedPipeline], rates_rps: Sequence[float]
) -> float:
    """Expected requests a second under the pools' interruptions."""
    down = down_shares(problem.nodes, problem.objective.recovery_s)

    def carried(places: Sequence[int]) -> float:
        left = [pipelines[place] for place in places]
        return carried_rps(problem.costs, left, [rates_rps[place] for place in places])

    return goodput_rps(pipelines, carried, down, problem.costs.workload.arrival_rate_rps)


def violation(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> tuple[str, int | None]:
    """The worst miss of a latency target in words, and the pipeline that misses it."""
    _, told, place = worst_miss(problem, pipelines)
    return told, place


def worst_miss(
    problem: Problem, pipelines: Sequence[PlacedPipeline]
) -> tuple[float, str, int | None]:
    """By how much the latency target that is missed most is, as a multiple of it, and in words, and
    the pipeline that misses it; 1 where none is, as of no pipelines."""
    objective = problem.objective
    worst: tuple[float, str, int | None] = (1.0, "", None)
    targets = (("TTFT", objective.ttft_target_s), ("TPOT", objective.tpot_target_s))
    if not pipelines or not any(limit for _, limit in targets):
        return worst
    total, each = estimate_plan(problem.costs, pipelines)
    if math.isinf(total.load.ttft_s) or math.isinf(total.load.tpot_s):
        return math.inf, "the arrival rate is past saturation", 0
    for i, estimate in enumerate(each):
        for (name, limit), got in zip(
            targets, (estimate.load.ttft_s, estimate.load.tpot_s), strict=True
        ):
            if limit and got / limit > worst[0]:
                worst = (got / limit, f"{name} {got:.3f} s against {limit:.3f} s", i)
    return worst
