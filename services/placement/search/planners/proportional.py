"""Layers in proportion to each node's speed, within its memory: the plain planner.

Nodes are dealt to pipelines fastest first, each to the pipeline with the least speed so far. Where
they have several backends, each backend's nodes form pipelines of their own.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import (
    CandidateNode,
    NodeClass,
    PlacedPipeline,
    PlacedStage,
    by_backend,
)
from services.placement.estimate.costs import StageCost
from services.placement.estimate.estimator import capacities
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Problem, Solution, nothing_fits, nothing_found
from services.placement.search.score import score

Speeds = Mapping[NodeClass, float]


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """As many pipelines as asked for, or as many as fit; when time is out, the first number that
    fits of ever a tenth fewer."""
    speeds = {kind: power(problem, kind) for kind in {node.kind for node in problem.nodes}}
    nodes = sorted(problem.nodes, key=lambda node: -speeds[node.kind])
    most = sum(_most_pipelines(problem, group) for group in by_backend(nodes).values())
    count, complete = problem.pipeline_count or most, True
    while count:
        if pipelines := _pipelines(problem, nodes, speeds, count):
            asked = " as asked for" if problem.pipeline_count else ""
            reasons = (f"{count} pipelines{asked}, layers in proportion to speed, within memory",)
            others = _runners_up(problem, nodes, speeds, count, budget)
            return Solution(pipelines, complete, reasons=reasons, runners_up=others)
        if problem.pipeline_count:
            break
        complete = complete and not budget.expired()
        count = count - 1 if complete else count * 9 // 10
    if problem.pipeline_count > 1:
        raise FailedPrecondition(
            f"no {problem.pipeline_count} pipelines fit; {nothing_fits(problem).message}",
            field="pipeline_count",
        )
    raise nothing_found(problem, budget)


def _pipelines(
    problem: Problem, nodes: Sequence[CandidateNode], speeds: Speeds, count: int
) -> tuple[PlacedPipeline, ...]:
    """So many pipelines, or none when they do not fit."""
    pipelines = []
    for some, share in _shares(problem, nodes, speeds, count):
        for group in _deal(some, speeds, share):
            pipeline = _split(problem, group, speeds)
            if pipeline is None:
                return ()
            pipelines.append(pipeline)
    return tuple(pipelines)


def _shares(
    problem: Problem, nodes: Sequence[CandidateNode], speeds: Speeds, count: int
) -> list[tuple[list[CandidateNode], int]]:
    """The nodes of each backend and how many of the pipelines they form: all of one backend's;
    else one each where there are so many, the others in proportion to speed (D'Hondt), no more than
    fit. None of a backend that has none, and nothing at all where so many do not fit."""
    groups = list(by_backend(nodes).values())
    if len(groups) == 1:
        return [(groups[0], count)]
    speed = [sum(speeds[node.kind] for node in group) for group in groups]
    most = [_most_pipelines(problem, group) for group in groups]
    shares = [0] * len(groups)
    for _ in range(count):
        open_ = [i for i in range(len(groups)) if shares[i] < most[i]]
        if not open_:
            return []
        shares[max(open_, key=lambda i: (not shares[i], speed[i] / (shares[i] + 1)))] += 1
    return [(group, share) for group, share in zip(groups, shares, strict=True) if share]


def _runners_up(
    problem: Problem,
    nodes: Sequence[CandidateNode],
    speeds: Speeds,
    count: int,
    budget: SearchBudget,
) -> tuple[tuple[PlacedPipeline, ...], ...]:
    """As many pipelines more or fewer, the best first."""
    near = sorted(set(range(1, len(nodes) + 1)) - {count}, key=lambda n: abs(n - count))
    found = []
    for other in near[: problem.runners_up]:
        if budget.expired():
            break
        if pipelines := _pipelines(problem, nodes, speeds, other):
            found.append(pipelines)
    return tuple(sorted(found, key=lambda pipelines: -score(problem, pipelines)))


def _part(problem: Problem, kind: NodeClass) -> StageCost:
    """The class at its largest TP degree."""
    degrees = problem.costs.degrees(kind)
    return problem.costs.of(kind, degrees[-1] if degrees else 1)


def power(problem: Problem, kind: NodeClass) -> float:
    """Layers a second in decode of one sequence."""
    return 1.0 / float(_part(problem, kind).decode_layer_s(1.0))


def _most_pipelines(problem: Problem, nodes: Sequence[CandidateNode]) -> int:
    """More do not fit, for certain."""
    parts = (_part(problem, node.kind) for node in nodes)
    room_bytes = sum(max(0.0, part.budget_bytes) * part.tp for part in parts)
    return min(len(nodes), int(room_bytes // problem.costs.model.total_bytes))


def _deal(nodes: Sequence[CandidateNode], speeds: Speeds, count: int) -> list[list[CandidateNode]]:
    """Fastest first, each to the group with the least speed so far."""
    groups: list[list[CandidateNode]] = [[] for _ in range(count)]
    slowest = [(0.0, i) for i in range(count)]
    for node in nodes:
        speed, i = heapq.heappop(slowest)
        groups[i].append(node)
        heapq.heappush(slowest, (speed + speeds[node.kind], i))
    return groups


def _split(
    problem: Problem, group: Sequence[CandidateNode], speeds: Speeds
) -> PlacedPipeline | None:
    """The group's pipeline, fastest node first, or None when its layers do not fit."""
    total = problem.costs.model.layers
    group = group[:total]
    parts = [_part(problem, node.kind) for node in group]
    most = [_most_layers(parts, i, total) for i in range(len(parts))]
    if sum(most) < total or min(most) < 1:
        return None
    layers = proportional([speeds[node.kind] for node in group], most, total)
    stages, start = [], 0
    for node, part, count in zip(group, parts, layers, strict=True):
        stages.append(PlacedStage(node, start, start + count, part.tp))
        start += count
    if min(capacities(parts, layers)) < 1:
        return None
    return PlacedPipeline(tuple(stages))


def _most_layers(parts: Sequence[StageCost], index: int, total: int) -> int:
    """Most layers that leave room for one sequence."""
    part, first, last = parts[index], index == 0, index == len(parts) - 1
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if part.capacity(middle, first, last) else (low, middle - 1)
    return low


def proportional(weights: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Integers from 1 to `most` that sum to `total`, as near to the weights as they can be."""
    shares = [1] * len(weights)
    for _ in range(total - len(weights)):
        open_ = [i for i in range(len(shares)) if shares[i] < most[i]]
        i = max(open_, key=lambda i: weights[i] / (shares[i] + 0.5))
        shares[i] += 1
    return shares
