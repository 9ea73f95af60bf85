"""vLLM: one pipeline with even layers and one TP degree.

It takes all nodes; where that does not fit or carries less, all nodes of some of the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    inventory,
)
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Problem, Solution, nothing_found

MAX_TYPES = 8


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """The best of the even pipelines."""
    stock = inventory(problem.nodes)
    kinds = range(len(stock.kinds))
    sizes = kinds if len(kinds) <= MAX_TYPES else [0, len(kinds) - 1]
    best: tuple[float, PlacedPipeline] | None = None
    for size in sizes:
        for chosen in combinations(kinds, size + 1):
            nodes = [node for kind in chosen for node in stock.nodes[kind]]
            for tp in uniform_degrees(problem, nodes):
                pipeline = even_pipeline(problem, nodes, tp)
                rate = rate_of(problem, pipeline)
                if pipeline and rate > (best[0] if best else 0.0):
                    best = rate, pipeline
            if budget.expired():
                break
    if best is None:
        raise nothing_found(problem, budget)
    return Solution((best[1],), complete=not budget.expired())


def uniform_degrees(problem: Problem, nodes: Sequence[CandidateNode]) -> list[int]:
    """TP degrees that every node can run."""
    sets = [set(problem.costs.degrees(kind)) for kind in {node.kind for node in nodes}]
    return sorted(set.intersection(*sets)) if sets else []


def even_pipeline(
    problem: Problem, nodes: Sequence[CandidateNode], tp: int
) -> PlacedPipeline | None:
    """Layers as even as can be, later stages one fewer."""
    total, count = problem.costs.model.layers, len(nodes)
    if not 1 <= count <= total:
        return None
    stages, start = [], 0
    for i, node in enumerate(nodes):
        end = start + total // count + (1 if i < total % count else 0)
        stages.append(PlacedStage(node, start, end, tp))
        start = end
    return PlacedPipeline(tuple(stages))


def rate_of(problem: Problem, pipeline: PlacedPipeline | None) -> float:
    """Requests a second; 0 when it does not fit."""
    if pipeline is None:
        return 0.0
    try:
        return estimate_pipeline(problem.costs, pipeline).throughput_rps
    except FailedPrecondition:
        return 0.0
