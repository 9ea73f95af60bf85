"""What a plan is worth over the horizon, its move included, under the objective it is made for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.search.problem import ObjectiveKind, Problem
from services.placement.search.score import goodput
from services.placement.search.shares import BUDGET_SLACK
from services.placement.search.transport import carried_rps


@dataclass(frozen=True)
class Rate:
    """What pipelines do together: requests a second at saturation, expected under interruptions
    and up to what arrives where cost counts, and dollars an hour."""

    throughput_rps: float
    useful_rps: float
    cost_per_hour: float


def rate_of(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> Rate:
    rates = [estimate_pipeline(problem.costs, p).throughput_rps for p in pipelines]
    useful = throughput = carried_rps(problem.costs, pipelines, rates)
    arriving = problem.costs.workload.arrival_rate_rps
    if problem.objective.kind is ObjectiveKind.GOODPUT_PER_COST and pipelines:
        useful = goodput(problem, pipelines, rates)
    elif arriving and problem.objective.kind is not ObjectiveKind.THROUGHPUT:
        useful = min(throughput, arriving)
    return Rate(throughput, useful, cost_per_hour(pipelines))


def cost_per_hour(pipelines: Sequence[PlacedPipeline]) -> float:
    return sum(pipeline.cost_per_hour for pipeline in pipelines)


def node_count(pipelines: Sequence[PlacedPipeline]) -> int:
    """A stage has a node of its own."""
    return sum(len(pipeline.stages) for pipeline in pipelines)


def within_budget(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> bool:
    """A budget of 0 does not bind."""
    budget = problem.objective.budget_per_hour
    return not budget or cost_per_hour(pipelines) <= budget * (1 + BUDGET_SLACK)


@dataclass(frozen=True)
class Outlook:
    """Requests answered and dollars spent over the horizon."""

    requests: float
    dollars: float

    def worth(self, kind: ObjectiveKind) -> float:
        """Requests, or requests a dollar where cost counts and nodes cost anything."""
        if kind is ObjectiveKind.THROUGHPUT or self.dollars <= 0:
            return self.requests
        return self.requests / self.dollars


def outlook(
    problem: Problem,
    kept: Sequence[PlacedPipeline],
    fresh: Sequence[PlacedPipeline],
    ended: Sequence[PlacedPipeline],
    serve_s: float,
    horizon_s: float,
) -> Outlook:
    """`fresh` pipelines serve from `serve_s` on; until then what they replace is paid for beside
    them, and nothing is counted on that it answers."""
    moving_s = min(serve_s, horizon_s) if fresh else 0.0
    meanwhile, after = rate_of(problem, kept), rate_of(problem, (*kept, *fresh))
    requests = meanwhile.useful_rps * moving_s + after.useful_rps * (horizon_s - moving_s)
    hours = (after.cost_per_hour * horizon_s + cost_per_hour(ended) * moving_s) / 3600
    return Outlook(requests, hours)


def gain(kind: ObjectiveKind, better: Outlook, than: Outlook) -> float:
    """By how much of its own worth the one is better; infinite where the other is worth nothing."""
    base = than.worth(kind)
    if base > 0:
        return better.worth(kind) / base - 1
    return math.inf if better.worth(kind) > 0 else 0.0
