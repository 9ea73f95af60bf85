"""Plans that may take the place of the running one, and what the limits say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.replan.change import Change
from services.placement.replan.worth import cost_per_hour, rate_of, within_budget
from services.placement.search.budget import SearchBudget
from services.placement.search.planners.proportional import power
from services.placement.search.problem import ObjectiveKind, Planner, Problem

MOST_PARTS = 64
"""Pipelines that are each asked whether the plan is better without them."""
STAY = "what is left of the running plan"
ALL = "a plan of all nodes"


def options_for(
    problem: Problem,
    change: Change,
    left: tuple[PlacedPipeline, ...],
    search: Planner,
    budget: SearchBudget,
) -> list[tuple[str, tuple[PlacedPipeline, ...]]]:
    """Plans by name, none of them empty."""
    options = [(STAY, left)]
    used = frozenset(node_id for pipeline in left for node_id in pipeline.node_ids)
    best = best_nodes(problem, problem.nodes, change.nodes_max, used)
    if change.anew:
        options.append((ALL, _planned(problem, best, search, budget)))
        return [(name, option) for name, option in options if option]
    free = tuple(node for node in problem.nodes if node.node_id not in used)
    if change.nodes_max:
        room = max(0, change.nodes_max - len(used))
        free = best_nodes(problem, free, room, used) if room else ()
    more = _what_is_lacking(problem, left)
    if free and more is not None:
        added = _planned(more, free, search, budget)
        options.append(("it and pipelines of the free nodes", (*left, *added) if added else ()))
    if change.improve or not _keeps(problem, change, left):
        options += _without_each(problem, change, left)
        options.append((ALL, _planned(problem, best, search, budget)))
    return [(name, option) for name, option in options if option]


def _what_is_lacking(problem: Problem, left: Sequence[PlacedPipeline]) -> Problem | None:
    """The problem of what the left pipelines leave over: of the budget, and of the requests that
    arrive where cost counts. None when nothing is lacking."""
    objective, workload = problem.objective, problem.costs.workload
    if left and objective.budget_per_hour:
        rest = objective.budget_per_hour - cost_per_hour(left)
        if rest <= 0:
            return None
        problem = replace(problem, objective=replace(objective, budget_per_hour=rest))
    arriving = workload.arrival_rate_rps
    if left and arriving and objective.kind is not ObjectiveKind.THROUGHPUT:
        lacking = arriving - rate_of(problem, left).throughput_rps
        if lacking <= 0:
            return None
        problem = replace(problem, costs=problem.costs.at_rate(lacking))
    return problem


def best_nodes(
    problem: Problem, nodes: Sequence[CandidateNode], most: int, used: frozenset[str]
) -> tuple[CandidateNode, ...]:
    """At most so many of the nodes (0: all): those that do most, or most for their price where
    cost counts; of equal ones those in use first."""
    if not most or len(nodes) <= most:
        return tuple(nodes)
    minds_cost = problem.objective.kind is not ObjectiveKind.THROUGHPUT

    def worth(node: CandidateNode) -> tuple[float, bool]:
        does = power(problem, node.kind)
        price = node.kind.price_per_hour
        return (does / price if minds_cost and price > 0 else does), node.node_id in used

    return tuple(sorted(nodes, key=worth, reverse=True)[:most])


def _nodes_of(pipelines: Sequence[PlacedPipeline]) -> int:
    return sum(len(pipeline.stages) for pipeline in pipelines)


def _keeps(problem: Problem, change: Change, pipelines: Sequence[PlacedPipeline]) -> bool:
    """It keeps to the budget and to the most nodes."""
    count = _nodes_of(pipelines)
    return within_budget(problem, pipelines) and (not change.nodes_max or count <= change.nodes_max)


def forbidden(
    problem: Problem,
    change: Change,
    pipelines: Sequence[PlacedPipeline],
    left: Sequence[PlacedPipeline],
) -> str:
    """Why a plan may not be; empty when it may. One with less than the least nodes may where there
    are no more left of the running one."""
    if not within_budget(problem, pipelines):
        return _too_dear(problem, pipelines)
    count = _nodes_of(pipelines)
    if change.nodes_max and count > change.nodes_max:
        return f"{count} nodes are more than {change.nodes_max}"
    fewest = min(change.nodes_min, _nodes_of(left))
    if count < fewest:
        return f"{count} nodes are less than {fewest}"
    return ""


def _without_each(
    problem: Problem, change: Change, left: tuple[PlacedPipeline, ...]
) -> list[tuple[str, tuple[PlacedPipeline, ...]]]:
    """What is left without one of its pipelines, and without as many as the budget and the most
    nodes demand."""
    if cost_per_hour(left) <= 0 and _keeps(problem, change, left):
        return []
    shares = [rate_of(problem, (p,)).throughput_rps / max(p.cost_per_hour, 1e-12) for p in left]
    worst_first = sorted(range(len(left)), key=shares.__getitem__)
    options = []
    for index in worst_first[:MOST_PARTS]:
        rest = left[:index] + left[index + 1 :]
        options.append((f"it without pipeline {index + 1}", rest))
    rest = left
    for index in worst_first:
        if _keeps(problem, change, rest):
            break
        rest = tuple(p for p in rest if p is not left[index])
    if len(rest) < len(left) - 1:
        options.append(("what of it the limits allow", rest))
    return options


def _too_dear(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> str:
    cost = cost_per_hour(pipelines)
    return f"{cost:.3f} $/h is above the budget of {problem.objective.budget_per_hour:.3f}"


def _planned(
    problem: Problem, nodes: Sequence[CandidateNode], search: Planner, budget: SearchBudget
) -> tuple[PlacedPipeline, ...]:
    """A plan of some of the nodes; none when they hold no pipeline, or time is out."""
    count = 0 if len(nodes) < len(problem.nodes) else problem.pipeline_count
    part = replace(problem, nodes=tuple(nodes), pipeline_count=count)
    try:
        return search(part, budget).pipelines
    except (FailedPrecondition, DeadlineExceeded):
        return ()
