"""Layers in proportion to each node's speed, within its memory: the plain planner.

Nodes are dealt to pipelines fastest first, each to the pipeline with the least speed so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import FailedPrecondition
from services.placement.cluster import Node, Pipeline, Stage
from services.placement.costs import StageCost
from services.placement.estimator import capacities
from services.placement.problem import Budget, Problem, Solution, nothing_fits


def plan(problem: Problem, budget: Budget) -> Solution:
    """As many pipelines as asked for, or as many as fit."""
    nodes = sorted(problem.nodes, key=lambda node: -_speed(problem, node))
    counts = [problem.pipeline_count] if problem.pipeline_count else range(len(nodes), 0, -1)
    for count in counts:
        pipelines = [_split(problem, group) for group in _deal(problem, nodes, count)]
        if all(pipelines):
            reasons = (f"{count} pipelines, layers in proportion to speed, within memory",)
            return Solution(tuple(p for p in pipelines if p), reasons=reasons)
    if problem.pipeline_count > 1:
        raise FailedPrecondition(
            f"no {problem.pipeline_count} pipelines fit; {nothing_fits(problem).message}",
            field="pipeline_count",
        )
    raise nothing_fits(problem)


def _degree(problem: Problem, node: Node) -> int:
    degrees = problem.costs.degrees(node.kind)
    return degrees[-1] if degrees else 1


def _speed(problem: Problem, node: Node) -> float:
    """Layers a second in decode of one sequence."""
    return 1.0 / float(problem.costs.of(node.kind, _degree(problem, node)).decode_layer_s(1.0))


def _deal(problem: Problem, nodes: Sequence[Node], count: int) -> list[list[Node]]:
    groups: list[list[Node]] = [[] for _ in range(count)]
    speeds = [0.0] * count
    for node in nodes:
        slowest = min(range(count), key=lambda i: speeds[i])
        groups[slowest].append(node)
        speeds[slowest] += _speed(problem, node)
    return groups


def _split(problem: Problem, group: Sequence[Node]) -> Pipeline | None:
    """The group's pipeline, fastest node first, or None when its layers do not fit."""
    total = problem.costs.model.layers
    group = group[:total]
    parts = [problem.costs.of(node.kind, _degree(problem, node)) for node in group]
    most = [_most_layers(parts, i, total) for i in range(len(parts))]
    if sum(most) < total or min(most) < 1:
        return None
    layers = proportional([_speed(problem, node) for node in group], most, total)
    stages, start = [], 0
    for node, part, count in zip(group, parts, layers, strict=True):
        stages.append(Stage(node, start, start + count, part.tp))
        start += count
    if min(capacities(parts, layers)) < 1:
        return None
    return Pipeline(tuple(stages))


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
