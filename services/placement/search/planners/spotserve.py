"""SpotServe (ASPLOS'24): uniform degrees (data D, pipeline P, tensor M) over the nodes there are.

Among the degrees that carry the arrival rate the ones of least latency, else those of most
throughput. Layers are even. Devices that already hold layers are mapped to the new slots by
Kuhn-Munkres when a running plan is changed (replan.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, by_backend
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.search.budget import SearchBudget
from services.placement.search.planners.vllm import even_pipeline, rate_of, uniform_degrees
from services.placement.search.problem import Problem, Solution, nothing_found


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """The degrees chosen as SpotServe does."""
    nodes = sorted(problem.nodes, key=lambda node: -_power(node))
    rate = problem.costs.workload.arrival_rate_rps
    best: tuple[tuple[bool, float], tuple[PlacedPipeline, ...]] | None = None
    for used, stages in _degrees(len(nodes), problem.costs.model.layers):
        for tp in uniform_degrees(problem, nodes[:used]):
            pipelines = _even(problem, nodes[:used], stages, tp)
            rates = [rate_of(problem, p) for p in pipelines]
            if pipelines and min(rates) > 0:
                key = _rank(problem, pipelines, sum(rates), rate)
                if best is None or key > best[0]:
                    best = key, pipelines
        if budget.expired():
            break
    if best is None:
        raise nothing_found(problem, budget)
    return Solution(best[1], complete=not budget.expired())


def _degrees(nodes: int, layers: int) -> Iterator[tuple[int, int]]:
    """Nodes used and stages of each pipeline, the most nodes first."""
    for used in range(nodes, 0, -1):
        for stages in range(1, min(used, layers) + 1):
            if used % stages == 0:
                yield used, stages


def _power(node: CandidateNode) -> float:
    return node.kind.gpu.fp16_tflops * node.kind.gpu_count * node.kind.speed


def _even(
    problem: Problem, nodes: Sequence[CandidateNode], stages: int, tp: int
) -> tuple[PlacedPipeline, ...]:
    """None where a part of the nodes is over, among those of one backend."""
    made = []
    for group in by_backend(nodes).values():
        if len(group) % stages:
            return ()
        parts = (group[i : i + stages] for i in range(0, len(group), stages))
        made += [even_pipeline(problem, part, tp) for part in parts]
    return tuple(p for p in made if p) if all(made) else ()


def _rank(
    problem: Problem, pipelines: Sequence[PlacedPipeline], carried: float, rate: float
) -> tuple[bool, float]:
    """Enough throughput first, then latency; else throughput."""
    if rate and carried >= rate:
        latency = max(
            estimate_pipeline(problem.costs, p).single_request_latency_s for p in pipelines
        )
        return True, -latency
    return False, carried
