"""A plain search for a plan, for clusters of a few nodes: it is asked thousands of times.

Pipelines of up to three nodes, layers in proportion to speed, taken one after the other by each of
three measures as long as nodes and budget last; the best of what was passed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import (
    CandidateNode,
    NodeClass,
    PlacedPipeline,
    PlacedStage,
    inventory,
)
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Problem, Solution, nothing_fits
from services.placement.search.score import score

LONGEST = 3
"""Stages of a pipeline."""


@dataclass(frozen=True, slots=True)
class _Option:
    """A pipeline of nodes of these classes, by their index."""

    kinds: tuple[int, ...]
    rate_rps: float
    cost_per_hour: float


MEASURES: tuple[Callable[[_Option], float], ...] = (
    lambda option: option.rate_rps,
    lambda option: option.rate_rps / len(option.kinds),
    lambda option: option.rate_rps / max(option.cost_per_hour, 1e-9),
)


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """Raises FailedPrecondition when no pipeline fits."""
    found = inventory(problem.nodes)
    options = list(_options(problem, found.kinds, found.nodes))
    plans = [
        pipelines
        for measure in MEASURES
        for pipelines in _taken(problem, sorted(options, key=measure, reverse=True), found.nodes)
    ]
    if not plans:
        raise nothing_fits(problem)
    return Solution(max(plans, key=lambda pipelines: score(problem, pipelines)))


def _options(
    problem: Problem, kinds: Sequence[NodeClass], nodes: Sequence[Sequence[CandidateNode]]
) -> Iterator[_Option]:
    for size in range(1, LONGEST + 1):
        for group in combinations_with_replacement(range(len(kinds)), size):
            if all(group.count(kind) <= len(nodes[kind]) for kind in group):
                there = [nodes[kind][group[:place].count(kind)] for place, kind in enumerate(group)]
                pipeline = _split(there, problem.costs.model.layers)
                try:
                    rate = estimate_pipeline(problem.costs, pipeline).throughput_rps
                except FailedPrecondition:
                    continue
                yield _Option(group, rate, pipeline.cost_per_hour)


def _split(nodes: Sequence[CandidateNode], layers: int) -> PlacedPipeline:
    """Layers in proportion to speed."""
    whole, end, speed = sum(node.kind.speed for node in nodes), 0, 0.0
    stages = []
    for left, node in zip(range(len(nodes) - 1, -1, -1), nodes, strict=True):
        start, speed = end, speed + node.kind.speed
        end = min(max(start + 1, round(layers * speed / whole)), layers - left)
        stages.append(PlacedStage(node, start, end, 1))
    return PlacedPipeline(tuple(stages))


def _taken(
    problem: Problem, options: Sequence[_Option], nodes: Sequence[Sequence[CandidateNode]]
) -> Iterator[tuple[PlacedPipeline, ...]]:
    """Plans of ever more pipelines."""
    left = [list(group) for group in nodes]
    money = problem.objective.budget_per_hour or float("inf")
    pipelines: tuple[PlacedPipeline, ...] = ()
    for option in options:
        while option.cost_per_hour <= money and all(
            option.kinds.count(kind) <= len(left[kind]) for kind in option.kinds
        ):
            money -= option.cost_per_hour
            chosen = [left[kind].pop(0) for kind in option.kinds]
            pipelines = (*pipelines, _split(chosen, problem.costs.model.layers))
            yield pipelines
