"""Plans that may take the place of the running one, and what the limits say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import PlacedPipeline, by_backend
from services.placement.replan.change import Change
from services.placement.replan.parts import best_nodes, filled, planned, within_the_rest
from services.placement.replan.phasing import best_phases
from services.placement.replan.worth import cost_per_hour, node_count, rate_of, within_budget
from services.placement.search.budget import Part, SearchBudget
from services.placement.search.problem import ObjectiveKind, Planner, Problem

MOST_PARTS = 64
"""Kinds of pipelines of each of which is asked whether the plan is better without one."""
STAY = "what is left of the running plan"
ALL = "a plan of all nodes"
OTHER_PHASES = ("it in the phases that suit the targets", "it in the phases that carry most")

Option = tuple[str, tuple[PlacedPipeline, ...]]
"""A plan by its name."""


def options_for(
    problem: Problem,
    change: Change,
    left: tuple[PlacedPipeline, ...],
    search: Planner,
    budget: SearchBudget,
) -> list[Option]:
    """Plans by name, none of them empty. FailedPrecondition where phases alone may change and no
    pipeline is left."""
    options: list[Option] = [(STAY, left)]
    if change.phases_only:
        if not left:
            raise FailedPrecondition(
                "no pipeline is there that could have a phase", field="running"
            )
        return [*options, *zip(OTHER_PHASES, best_phases(problem, left, budget), strict=True)]
    used = frozenset(node_id for pipeline in left for node_id in pipeline.node_ids)
    if change.anew:
        whole = _whole(problem, change, used, search, budget)
        options += [*whole, *_up_to_the_least(problem, change, whole, search, budget)]
        return [(name, option) for name, option in options if option]
    free = tuple(node for node in problem.nodes if node.node_id not in used)
    if change.nodes_max:
        room = max(0, change.nodes_max - len(used))
        free = best_nodes(problem, free, room, used) if room else ()
    more = _what_is_lacking(problem, left)
    wholly = change.improve or not _keeps(problem, change, left)
    if free and more is not None:
        added = planned(more, free, search, Part(budget, 0.5) if wholly else budget)
        options.append(("it and pipelines of the free nodes", (*left, *added) if added else ()))
    options += _up_to_the_least(problem, change, options, search, budget)
    if wholly:
        options += _without_each(problem, change, left)
        whole = _whole(problem, change, used, search, budget)
        options += [*whole, *_up_to_the_least(problem, change, whole, search, budget)]
    return [(name, option) for name, option in options if option]


def _whole(
    problem: Problem,
    change: Change,
    used: frozenset[str],
    search: Planner,
    budget: SearchBudget,
) -> list[Option]:
    """Plans of the best nodes; where there may not be all, and they have several backends, of each
    one's best, too: those of all backends may be too few of any for a pipeline."""
    best = best_nodes(problem, problem.nodes, change.nodes_max, used)
    plans = [(ALL, planned(problem, best, search, budget))]
    groups = by_backend(problem.nodes) if len(best) < len(problem.nodes) else {}
    for name, group in groups.items() if len(groups) > 1 else ():
        some = best_nodes(problem, group, change.nodes_max, used)
        plans.append((f"{ALL} of {name}", planned(problem, some, search, budget)))
    return plans


def _up_to_the_least(
    problem: Problem,
    change: Change,
    plans: Sequence[Option],
    search: Planner,
    budget: SearchBudget,
) -> list[Option]:
    """The plans with others beside them that have the least nodes together; where none has so many
    by that, or pipelines are of one choice, others in place of them."""
    least, most = change.nodes_min, change.nodes_max
    there = [(name, plan) for name, plan in plans if plan]
    largest = max((node_count(plan) for _, plan in there), default=least)
    found: list[Option] = []
    if largest >= least:
        return found
    for name, plan in there if not change.anew else ():
        more = filled(problem, plan, least, most, search, budget)
        found += [(f"{name}, and {which} up to {least}", option) for which, option in more]
    if not any(node_count(plan) >= least for _, plan in found):
        more = filled(problem, (), least, most, search, budget)
        found += [(f"{ALL}: {which} up to {least}", option) for which, option in more]
    return [(name, plan) for name, plan in found if node_count(plan) > largest]


def _what_is_lacking(problem: Problem, left: tuple[PlacedPipeline, ...]) -> Problem | None:
    """The problem of what the left pipelines leave over: of the budget, and of the requests that
    arrive where cost counts. None when nothing is lacking."""
    rest = within_the_rest(problem, left)
    arriving = problem.costs.workload.arrival_rate_rps
    if rest is None or not left or not arriving:
        return rest
    if problem.objective.kind is ObjectiveKind.THROUGHPUT:
        return rest
    lacking = arriving - rate_of(problem, left).throughput_rps
    return replace(rest, costs=rest.costs.at_rate(lacking)) if lacking > 0 else None


def _keeps(problem: Problem, change: Change, pipelines: Sequence[PlacedPipeline]) -> bool:
    """It keeps to the budget and to the most nodes."""
    count = node_count(pipelines)
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
    count = node_count(pipelines)
    if change.nodes_max and count > change.nodes_max:
        return f"{count} nodes are more than {change.nodes_max}"
    fewest = min(change.nodes_min, node_count(left))
    if count < fewest:
        return f"{count} nodes are less than {fewest}"
    return ""


def _without_each(
    problem: Problem, change: Change, left: tuple[PlacedPipeline, ...]
) -> list[Option]:
    """What is left without one of its pipelines, of those that are alike the first, and without as
    many as the budget and the most nodes demand."""
    if cost_per_hour(left) <= 0 and _keeps(problem, change, left):
        return []
    shares = [rate_of(problem, (p,)).throughput_rps / max(p.cost_per_hour, 1e-12) for p in left]
    worst_first = sorted(range(len(left)), key=shares.__getitem__)
    first_of: dict[object, int] = {}
    for index in worst_first:
        first_of.setdefault(left[index].alike, index)
    options = []
    for index in list(first_of.values())[:MOST_PARTS]:
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
