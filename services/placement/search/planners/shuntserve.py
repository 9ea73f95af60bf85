"""Beam search over pipelines, a packing of the best, exact splits of what the packing uses.

Candidates enter the packing with their upper bound; those that a packing uses are solved and take
their true rate, until a packing consists of solved ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.roofline import Array
from services.placement.search import registry
from services.placement.search.beam import Pool, class_values, joined, search
from services.placement.search.budget import Part, SearchBudget
from services.placement.search.choice import Choose, chooser
from services.placement.search.columns import Candidate, Members
from services.placement.search.field import SearchField, field
from services.placement.search.packing import class_prices
from services.placement.search.planners import proportional, thunderserve
from services.placement.search.problem import (
    Objective,
    ObjectiveKind,
    Problem,
    Solution,
    nothing_found,
)
from services.placement.search.score import score, violation


@dataclass(frozen=True)
class Effort:
    """How much of the search space is looked at."""

    width: int
    """States of one length that are grown."""
    keep: int
    """Candidates that are packed."""


SMALL_NODES = 32
SMALL = Effort(200, 1000)
LARGE = Effort(400, 2000)
PRICE_ROUNDS = 2
ROUNDS = 40
DROPS = 20
ROOMS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Times what arrives that a plan carries for the sake of latency targets."""


@dataclass
class State:
    """Candidates with what is known of each: a bound, or the rate of its best split."""

    members: tuple[Members, ...]
    value: Array
    solved: np.ndarray  # bool [candidates]

    def copy(self) -> State:
        return State(self.members, self.value.copy(), self.solved.copy())


def plan(problem: Problem, budget: SearchBudget, effort: Effort | None = None) -> Solution:
    """The best plan found within the budget that keeps the latency targets; where none is found,
    the best without regard to them, which says how late it is. When time is over, or engines are
    known, the plain planner's if it is better, or if there is none, but only where neither cost nor
    other limits count. Effort goes by the number of nodes where nothing is said."""
    effort = effort or (SMALL if len(problem.nodes) <= SMALL_NODES else LARGE)
    degrees = [0]
    if problem.objective.uniform_tp:
        kinds = {node.kind for node in problem.nodes}
        degrees = sorted({n for kind in kinds for n in problem.costs.degrees(kind)})
    found, cut = list[Solution](), False
    for turn, tp in enumerate(degrees):
        try:
            found += _plan_at(problem, tp, Part(budget, 1 / (len(degrees) - turn)), effort)
        except DeadlineExceeded:  # another degree may have a plan within its part of the time
            cut = True
    cut = cut or not all(solution.complete for solution in found)
    if timely := [solution for solution in found if not solution.late]:
        best = _better_of(problem, timely, budget)
    else:
        best = _better_of(replace(problem, objective=problem.objective.untimed), found, budget)
        best = replace(best, late=violation(problem, best.pipelines)[0])
    return replace(best, complete=best.complete and not cut)


def _better_of(problem: Problem, found: list[Solution], budget: SearchBudget) -> Solution:
    """The best of these and of what other planners find, where they heed all that is asked for."""
    found = list(found)
    if found and problem.objective == Objective(allow_phase_split=True):
        with suppress(FailedPrecondition, DeadlineExceeded):
            found.append(thunderserve.plan(problem, budget))
    # Candidates are ranked by fixed batches; what engines take speaks for short pipelines.
    plain = budget.expired() or problem.costs.calibration.engine is not None
    if plain and not registry.ignored("proportional", problem.objective):
        with suppress(FailedPrecondition, DeadlineExceeded):
            other = proportional.plan(problem, budget)
            found.append(replace(other, complete=other.complete and not budget.expired()))
    if not found:
        raise nothing_found(problem, budget)
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda solution: score(problem, solution.pipelines))


def _plan_at(problem: Problem, tp: int, budget: SearchBudget, effort: Effort) -> list[Solution]:
    """The best plan at one degree (0: at any), if there is one; the first that was found, which is
    the best without latency targets, where none keeps them."""
    try:
        ground = field(problem, tp, budget=budget, by_price=_minds_price(problem.objective))
    except FailedPrecondition:
        return []
    pool = _pool(ground, budget, effort)
    if not pool.members:
        return []
    state = State(pool.members, pool.bound.copy(), np.zeros(len(pool.members), dtype=bool))
    choose = chooser(ground, pool.members, budget)
    first: tuple[State, list[tuple[int, Candidate]], str] | None = None
    for _ in range(DROPS):
        _settle(ground, state, choose, budget)
        chosen = _best_solved(ground, state, choose)
        if not chosen:
            break
        told, culprit = violation(problem, _built(ground, chosen))
        if culprit is None:
            return [_solution(ground, state, choose, chosen, budget)]
        first = first or (state.copy(), chosen, told)
        if roomy := _with_room(ground, state, chosen, budget):
            return [_solution(ground, state, choose, roomy, budget)]
        if budget.expired():
            break
        state.value[chosen[culprit][0]] = 0.0
        state.solved[chosen[culprit][0]] = True
    if first is None:
        return []
    state, chosen, told = first
    return [_solution(ground, state, choose, chosen, budget, told)]


def _solution(
    ground: SearchField,
    state: State,
    choose: Choose,
    chosen: Sequence[tuple[int, Candidate]],
    budget: SearchBudget,
    late: str = "",
) -> Solution:
    """What is chosen, and what would be without one of it."""
    used = sorted({index for index, _ in chosen})
    others = _runners_up(ground, state, choose, used, budget, timely=not late)
    reasons = (f"{len(state.members)} candidates, {int(state.solved.sum())} solved",)
    complete = not budget.expired()
    return Solution(_built(ground, chosen), complete, reasons=reasons, runners_up=others, late=late)


def _with_room(
    ground: SearchField,
    state: State,
    without: list[tuple[int, Candidate]],
    budget: SearchBudget,
) -> list[tuple[int, Candidate]]:
    """Of the plans for more than what arrives the cheapest that keeps the targets, which the one
    `without` room does not; none where no room helps, or what arrives need not be carried at the
    least cost."""
    problem = ground.problem
    kind, arriving = problem.objective.kind, problem.costs.workload.arrival_rate_rps
    if kind is ObjectiveKind.THROUGHPUT or not arriving:
        return []

    def planned(room: float) -> list[tuple[int, Candidate]]:
        choose = chooser(ground, state.members, budget, room)
        _settle(ground, state, choose, budget)
        return _best_solved(ground, state, choose)

    before = without
    for room in ROOMS:
        if budget.expired():
            break
        chosen = planned(room)
        if room == ROOMS[0] and chosen == without == planned(ROOMS[-1]):
            break  # it is the best for the least and for the most, so for all between
        if chosen == before:
            continue
        if chosen and not violation(problem, _built(ground, chosen))[0]:
            return chosen
        before = chosen
    return []


def _built(
    ground: SearchField, chosen: Sequence[tuple[int, Candidate]]
) -> tuple[PlacedPipeline, ...]:
    return ground.build([candidate for _, candidate in chosen])


def _pool(ground: SearchField, budget: SearchBudget, effort: Effort) -> Pool:
    """Candidates; unless these are all, searched again at the prices a packing puts on nodes."""
    small = len(ground.problem.nodes) <= SMALL_NODES
    width, keep = effort.width, effort.keep
    pool = search(ground, _values(ground, budget), width, keep, budget)
    if pool.whole or ground.problem.objective.kind is not ObjectiveKind.THROUGHPUT:
        return pool
    for _ in range(1 if small else PRICE_ROUNDS):
        if budget.expired() or not pool.members:
            break
        prices = class_prices(ground.usage(pool.members), pool.bound, ground.counts)
        prices = np.maximum(prices, max(float(prices.max()) * 1e-3, 1e-12))
        pool = joined(pool, search(ground, prices, width, keep, budget))
    return pool


def _minds_price(objective: Objective) -> bool:
    return (
        objective.kind is not ObjectiveKind.THROUGHPUT
        or objective.budget_per_hour > 0
        or objective.min_on_demand_share > 0
    )


def _values(ground: SearchField, budget: SearchBudget) -> Array:
    """What competing states pay for their nodes: their worth, or their price."""
    if ground.problem.objective.kind is ObjectiveKind.THROUGHPUT:
        return class_values(ground, budget)
    prices = np.array([kind.price_per_hour for kind in ground.stock.kinds])
    floor: Array = np.maximum(prices, 1e-6)
    return floor


def _settle(ground: SearchField, state: State, choose: Choose, budget: SearchBudget) -> None:
    """Solves what the choice uses until it uses nothing unsolved, or time is out and something
    is solved."""
    for _ in range(ROUNDS):
        uses = choose(state.value)
        open_ = np.flatnonzero((uses > 0) & ~state.solved)
        for i in open_:
            if budget.expired() and np.any(state.solved & (state.value > 0)):
                break
            candidate = ground.columns.solve(state.members[i])
            state.value[i] = candidate.split.rate_rps if candidate else 0.0
            state.solved[i] = True
        if not len(open_) or budget.expired():
            break


def _runners_up(
    ground: SearchField,
    state: State,
    choose: Choose,
    used: Sequence[int],
    budget: SearchBudget,
    *,
    timely: bool,
) -> tuple[tuple[PlacedPipeline, ...], ...]:
    """The best packings without one of the candidates that the plan uses; of those that keep the
    latency targets where it does."""
    problem = ground.problem
    found = []
    for index in used if problem.runners_up else ():
        if budget.expired():
            break
        other = state.copy()
        other.value[index] = 0.0
        _settle(ground, other, choose, budget)
        chosen = _best_solved(ground, other, choose)
        pipelines = ground.build([candidate for _, candidate in chosen])
        late = timely and violation(problem, pipelines)[0]
        if pipelines and pipelines not in found and not late:
            found.append(pipelines)
    found.sort(key=lambda pipelines: -score(problem, pipelines))
    return tuple(found[: problem.runners_up])


def _best_solved(ground: SearchField, state: State, choose: Choose) -> list[tuple[int, Candidate]]:
    """What is chosen when only solved candidates count; each with its index."""
    uses = choose(np.where(state.solved, state.value, 0.0))
    chosen: list[tuple[int, Candidate]] = []
    for i in np.flatnonzero((uses > 0) & state.solved & (state.value > 0)):
        candidate = ground.columns.solve(state.members[i])
        chosen.extend([(int(i), candidate)] * int(uses[i]) if candidate else [])
    return chosen
