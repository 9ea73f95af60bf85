"""Beam search over pipelines, an exact packing of the best, then moves between pipelines.

Candidates enter the packing with their upper bound; those that a packing uses are solved exactly
and take their true rate, until a packing consists of solved ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.placement.beam import Pool, class_values, search
from services.placement.columns import Candidate, Members
from services.placement.field import Field, field
from services.placement.packing import class_prices, pack
from services.placement.problem import Budget, Problem, Solution, nothing_fits
from services.placement.rates import Ints
from services.placement.roofline import Array

WIDTH = 240
ROUNDS = 40


@dataclass
class State:
    """Candidates with what is known of each: a bound, or the rate of its best split."""

    members: list[Members]
    usage: Ints
    value: Array
    solved: np.ndarray  # bool [candidates]


def plan(problem: Problem, budget: Budget) -> Solution:
    """The best plan found within the budget."""
    degrees = [0]
    if problem.objective.uniform_tp:
        kinds = {node.kind for node in problem.nodes}
        degrees = sorted({n for kind in kinds for n in problem.costs.degrees(kind)})
    best: tuple[float, Field, list[Candidate]] | None = None
    for tp in degrees:
        try:
            ground = field(problem, tp)
        except Exception:
            raise
        chosen = throughput(ground, budget)
        rate = sum(c.split.rate_rps for c in chosen)
        if chosen and (best is None or rate > best[0]):
            best = rate, ground, chosen
    if best is None:
        raise nothing_fits(problem)
    pipelines = best[1].build(best[2])
    return Solution(pipelines, complete=not budget.expired())


def throughput(ground: Field, budget: Budget) -> list[Candidate]:
    """Candidates with the highest rate together that the inventory allows."""
    values = class_values(ground)
    pool = search(ground, values, WIDTH, budget)
    if not pool.members:
        return []
    state = _state(ground, pool)
    _settle(ground, state, budget)
    return _best_solved(ground, state, budget)


def _state(ground: Field, pool: Pool) -> State:
    members = list(pool.members)
    return State(
        members, ground.usage(members), pool.bound.copy(), np.zeros(len(members), dtype=bool)
    )


def _settle(ground: Field, state: State, budget: Budget) -> None:
    """Solves what the packing uses until it uses nothing unsolved."""
    for _ in range(ROUNDS):
        packing = pack(
            state.usage, state.value, ground.counts, time_limit_s=min(1.0, budget.remaining_s())
        )
        open_ = np.flatnonzero((packing.uses > 0) & ~state.solved)
        for i in open_:
            candidate = ground.columns.solve(state.members[i])
            state.value[i] = candidate.split.rate_rps if candidate else 0.0
            state.solved[i] = True
        if not len(open_) or budget.expired():
            break


def _best_solved(ground: Field, state: State, budget: Budget) -> list[Candidate]:
    known = np.flatnonzero(state.solved)
    packing = pack(
        state.usage[known],
        state.value[known],
        ground.counts,
        time_limit_s=max(0.2, budget.remaining_s()),
    )
    chosen: list[Candidate] = []
    for i, uses in zip(known, packing.uses, strict=True):
        candidate = ground.columns.solve(state.members[i])
        if uses and candidate:
            chosen.extend([candidate] * int(uses))
    return chosen
