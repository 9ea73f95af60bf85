"""The best plan of a small cluster, and the proof: no plan carries more than its bound.

Every multiset of stages enters the packing with a true upper bound. What the best packing uses is
bounded more closely, then solved over every order, batch and split, until the best packing of
bounds is made of solved pipelines: then it is the best plan there is.
"""

from __future__ import annotations

import numpy as np

from services.common.errors import FailedPrecondition
from services.placement.search.budget import SearchBudget, check_time, solver_s
from services.placement.search.columns import Candidate, Members
from services.placement.search.field import SearchField, field
from services.placement.search.packing import pack
from services.placement.search.problem import Problem, Solution, nothing_fits, nothing_found
from services.placement.search.rates import Ints

MAX_MULTISETS = 60_000
MAX_STAGES = 9
LAST_S = 10.0
"""Of a packing of what is known, where there is a clock."""
TOGETHER = 1024
BOUNDED, CLOSELY, SOLVED = range(3)


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """The best plan; FailedPrecondition when the cluster is too large to enumerate."""
    ground = field(problem, budget=budget, tolerance=1e-9)
    members = enumerate_members(ground)
    by_length: dict[int, list[int]] = {}
    for i, group in enumerate(members):
        by_length.setdefault(len(group), []).append(i)
    bound = np.zeros(len(members))
    for rows in by_length.values():
        for some in (rows[i : i + TOGETHER] for i in range(0, len(rows), TOGETHER)):
            check_time(budget)
            bound[some] = ground.columns.sure_bounds(_rows(members, some), dense=False)
    useful = np.flatnonzero(bound > 0)
    if not len(useful):
        raise nothing_fits(problem)
    members, bound = [members[i] for i in useful], bound[useful]
    usage, known = ground.usage(members), np.full(len(members), BOUNDED)
    reached = np.zeros(len(members))
    complete = False
    while not budget.expired():
        uses = pack(usage, bound, ground.counts, time_limit_s=budget.remaining_s())
        used = np.flatnonzero(uses > 0)
        open_ = used[known[used] < SOLVED]
        if not len(open_):
            complete = True
            break
        for i in open_:
            row = np.asarray([members[i]])
            if known[i] == BOUNDED:
                bound[i] = min(bound[i], float(ground.columns.sure_bounds(row, dense=True)[0]))
                known[i] = CLOSELY
                continue
            candidate = ground.columns.solve_exactly(members[i])
            reached[i] = candidate.split.rate_rps if candidate else 0.0
            if budget.expired():  # perhaps before every order was looked at
                break
            bound[i] = max(reached[i], float(ground.columns.small_batch_bounds(row)[0]))
            known[i] = SOLVED
    last_s = solver_s(budget, LAST_S)
    upper = _upper(ground, usage, bound, last_s) if complete else None
    chosen = _chosen(ground, members, usage, reached, last_s)
    if not chosen:
        raise nothing_found(problem, budget)
    reasons = (f"{len(members)} sets of stages bounded, {int((known == SOLVED).sum())} solved",)
    return Solution(ground.build(chosen), complete, upper, reasons)


def _upper(ground: SearchField, usage: Ints, bound: np.ndarray, limit_s: float) -> float:
    """What no plan carries more than."""
    return float(pack(usage, bound, ground.counts, time_limit_s=limit_s) @ bound)


def enumerate_members(ground: SearchField) -> list[Members]:
    """Every multiset of options that the inventory allows, and of one backend."""
    counts, backends = ground.counts, ground.backends
    kinds = [option.kind for option in ground.options]
    longest = min(MAX_STAGES, ground.columns.tables.longest)
    if counts.sum() > MAX_STAGES:
        raise FailedPrecondition(
            f"exact plans at most {MAX_STAGES} nodes, not {int(counts.sum())}", field="planner"
        )
    found: list[Members] = []

    def grow(group: Members, left: list[int], start: int) -> None:
        for o in range(start, len(kinds)):
            alike = not group or backends[group[0]] == backends[o]
            if alike and left[kinds[o]] and len(group) < longest:
                more = (*group, o)
                found.append(more)
                if len(found) > MAX_MULTISETS:
                    raise FailedPrecondition(
                        f"over {MAX_MULTISETS} sets of stages to look at", field="planner"
                    )
                grow(more, [n - (k == kinds[o]) for k, n in enumerate(left)], o)

    grow((), [int(n) for n in counts], 0)
    return found


def _rows(members: list[Members], at: list[int]) -> Ints:
    return np.asarray([members[i] for i in at], dtype=np.int64)


def _chosen(
    ground: SearchField,
    members: list[Members],
    usage: Ints,
    reached: np.ndarray,
    limit_s: float,
) -> list[Candidate]:
    if not np.any(reached > 0):
        return []
    known = reached > 0  # the others would only make the packing slower
    members, usage, reached = (
        [m for m, k in zip(members, known, strict=True) if k],
        usage[known],
        reached[known],
    )
    uses = pack(usage, reached, ground.counts, time_limit_s=limit_s)
    chosen: list[Candidate] = []
    for i in np.flatnonzero(uses > 0):
        candidate = ground.columns.solve(members[i])
        chosen.extend([candidate] * int(uses[i]) if candidate else [])
    return chosen
