"""Plans of some of the nodes: which ones, what a planner makes of them, and what fills a plan up.

Who counts cost is content with the few nodes that carry what arrives, and who lost nodes with those
that are left. Where there are to be more, the nodes to add are chosen first, and then asked for all
that they can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.replan.worth import cost_per_hour, node_count
from services.placement.search.budget import SearchBudget
from services.placement.search.planners.proportional import power
from services.placement.search.problem import ObjectiveKind, Planner, Problem

MOST_MORE = 16
"""Nodes beyond those that are lacking which are tried, where fewer hold no pipeline."""
BEST, CHEAPEST = "the best nodes", "the cheapest nodes"

Pipelines = tuple[PlacedPipeline, ...]


def best_nodes(
    problem: Problem, nodes: Sequence[CandidateNode], most: int, used: frozenset[str]
) -> tuple[CandidateNode, ...]:
    """At most so many of the nodes (0: all), those that are worth most."""
    if not most or len(nodes) <= most:
        return tuple(nodes)
    return worth_most(problem, nodes, used)[:most]


def worth_most(
    problem: Problem, nodes: Sequence[CandidateNode], used: frozenset[str] = frozenset()
) -> tuple[CandidateNode, ...]:
    """The nodes, those first that do most, or most for their price where cost counts; of equal
    ones those in use."""
    minds_cost = problem.objective.kind is not ObjectiveKind.THROUGHPUT

    def worth(node: CandidateNode) -> tuple[float, bool]:
        does = power(problem, node.kind)
        price = node.kind.price_per_hour
        return (does / price if minds_cost and price > 0 else does), node.node_id in used

    return tuple(sorted(nodes, key=worth, reverse=True))


def cheapest(nodes: Sequence[CandidateNode]) -> tuple[CandidateNode, ...]:
    """The nodes, the cheapest first, whatever they do."""
    return tuple(sorted(nodes, key=lambda node: node.kind.price_per_hour))


def planned(
    problem: Problem, nodes: Sequence[CandidateNode], search: Planner, budget: SearchBudget
) -> Pipelines:
    """A plan of some of the nodes; none when they hold no pipeline, or time is out."""
    count = 0 if len(nodes) < len(problem.nodes) else problem.pipeline_count
    try:
        part = replace(problem, nodes=tuple(nodes), pipeline_count=count)
        return search(part, budget).pipelines
    except (FailedPrecondition, DeadlineExceeded):
        return ()


def within_the_rest(problem: Problem, pipelines: Pipelines) -> Problem | None:
    """The problem within what the pipelines leave of the budget; None where that is nothing."""
    objective = problem.objective
    if not pipelines or not objective.budget_per_hour:
        return problem
    rest = objective.budget_per_hour - cost_per_hour(pipelines)
    if rest <= 0:
        return None
    return replace(problem, objective=replace(objective, budget_per_hour=rest))


def filled(
    problem: Problem,
    pipelines: Pipelines,
    least: int,
    most: int,
    search: Planner,
    budget: SearchBudget,
) -> list[tuple[str, Pipelines]]:
    """The pipelines and others beside them, of `least` nodes together or as near to it as there
    is, and no more than `most` (0: any number): once of the nodes that are worth most, and once of
    the cheapest, by these names. Nothing where none is lacking, or none can be added."""
    rest = within_the_rest(problem, pipelines)
    used = {node_id for pipeline in pipelines for node_id in pipeline.node_ids}
    free = [node for node in problem.nodes if node.node_id not in used]
    room = min(len(free), most - len(used)) if most else len(free)
    fewest = min(least - len(used), room)
    if rest is None or fewest <= 0:
        return []
    asked = replace(rest, objective=replace(rest.objective, kind=ObjectiveKind.THROUGHPUT))
    found: dict[Pipelines, str] = {}
    for name, order in ((BEST, worth_most(problem, free)), (CHEAPEST, cheapest(free))):
        added: Pipelines = ()
        for count in range(fewest, min(room, fewest + MOST_MORE) + 1):
            added = max(added, planned(asked, order[:count], search, budget), key=node_count)
            if node_count(added) >= fewest or budget.expired():
                break
        if added:
            found.setdefault((*pipelines, *added), name)
    return [(name, option) for option, name in found.items()]
