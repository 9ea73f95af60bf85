"""The best multiset of candidate pipelines that an inventory and further limits allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.rates import Ints

DP_CELLS = 1.5e7
MIP_GAP = 1e-4
LARGE, LARGE_GAP = 1000, 5e-3
"""Columns of a programme, of which one with more is within this gap of the best where no clock ends
it: a solver that has it to a few thousandths at once may need minutes for the rest."""
NODE_COLUMNS = 300_000
"""Nodes of a solver's search tree times the columns of its programme; a node takes as much longer
as there are more of these."""
LEAST_NODES = 20
MOST_STEPS = 1_000_000
"""Of the simplex method for one linear program."""
LEAST_S = 0.1


@dataclass(frozen=True)
class Limits:
    """Linear limits beside the inventory: rows [limits, candidates], each at most its bound."""

    rows: Array
    bounds: Array


@dataclass(frozen=True)
class Scenario:
    """A share of the time in which only some candidates serve."""

    share: float
    serves: Array  # bool [candidates]


def pack(
    usage: Ints,
    value: Array,
    counts: Ints,
    *,
    time_limit_s: float,
    limits: Limits | None = None,
) -> Ints:
    """Uses [candidates] that maximise uses x value with uses x usage <= counts and the limits.

    `usage` is [candidates, classes]. Small inventories without further limits by a dynamic
    programme, which is exact; others by HiGHS until it is within a gap of the best, or a limit of
    work or the time limit (infinite: none) is reached.
    """
    states = float(np.prod(counts + 1.0))
    if limits is None and states * len(usage) <= DP_CELLS:
        return _dynamic(usage, value, counts)
    rows, bounds = usage.T.astype(float), counts.astype(float)
    if limits is not None:
        rows, bounds = np.vstack([rows, limits.rows]), np.append(bounds, limits.bounds)
    return _integers(value, rows, bounds, _most_uses(usage, counts), time_limit_s)


def pack_scenarios(
    usage: Ints,
    value: Array,
    cost: Array,
    counts: Ints,
    scenarios: list[Scenario],
    rate: float,
    *,
    time_limit_s: float,
    limits: Limits | None = None,
) -> Ints:
    """Uses that maximise sum(share x min(rate, what serves)) - uses x cost; rate 0 caps nothing.

    Each scenario adds a variable for what is carried in it.
    """
    n, s = len(usage), len(scenarios)
    rows = np.zeros((len(counts) + s, n + s))
    rows[: len(counts), :n] = usage.T
    for i, scenario in enumerate(scenarios):
        rows[len(counts) + i, :n] = -value * scenario.serves
        rows[len(counts) + i, n + i] = 1.0
    bounds = np.append(counts.astype(float), np.zeros(s))
    if limits is not None:
        rows = np.vstack([rows, np.pad(limits.rows, ((0, 0), (0, s)))])
        bounds = np.append(bounds, limits.bounds)
    objective = np.append(-cost, [scenario.share for scenario in scenarios])
    top = float((_most_uses(usage, counts) * value).sum())
    most = np.append(_most_uses(usage, counts), np.full(s, rate or top))
    return _integers(objective, rows, bounds, most, time_limit_s, integers=n)[:n]


def class_prices(usage: Ints, value: Array, counts: Ints) -> Array:
    """What one more node of each class is worth to the linear relaxation; [classes]."""
    rows, bounds = usage.T.astype(float), counts.astype(float)
    solver = _solver(value, rows, bounds, _most_uses(usage, counts))
    prices: Array = np.abs(np.asarray(solver.getSolution().row_dual))
    return prices


def maximise(value: Array, rows: Array, bounds: Array, most: Array) -> Array:
    """The x in [0, most] with the greatest value x and rows x <= bounds."""
    return np.asarray(_solver(value, rows, bounds, most).getSolution().col_value)


def _most_uses(usage: Ints, counts: Ints) -> Array:
    room = np.where(usage > 0, counts // np.maximum(usage, 1), counts.max())
    most: Array = room.min(axis=1).astype(float)
    return most


def _dynamic(usage: Ints, value: Array, counts: Ints) -> Ints:
    shape = tuple(int(n) + 1 for n in counts)
    best = np.zeros(shape)
    choice = np.full(shape, -1, dtype=np.int64)
    for c in np.argsort(-value, kind="stable"):
        u = usage[c]
        if value[c] <= 0 or np.any(u > counts):
            continue
        into = tuple(slice(int(n), None) for n in u)
        source_at = tuple(slice(0, n - int(m)) for n, m in zip(shape, u, strict=True))
        for _ in range(int((counts[u > 0] // u[u > 0]).min())):
            source = best[source_at] + value[c]
            better = source > best[into] + 1e-12
            if not better.any():
                break
            best[into] = np.where(better, source, best[into])
            choice[into] = np.where(better, c, choice[into])
    uses = np.zeros(len(usage), dtype=np.int64)
    state = tuple(int(n) for n in counts)
    while (c := int(choice[state])) >= 0:
        uses[c] += 1
        state = tuple(s - int(n) for s, n in zip(state, usage[c], strict=True))
    return uses


def _integers(
    value: Array,
    rows: Array,
    bounds: Array,
    most: Array,
    time_limit_s: float,
    integers: int | None = None,
) -> Ints:
    whole = len(value) if integers is None else integers
    solver = _solver(value, rows, bounds, most, whole, time_limit_s)
    found = np.asarray(solver.getSolution().col_value)
    if len(found):
        uses: Ints = np.rint(found).astype(np.int64)
        fits = whole < len(value) or bool(np.all(rows @ uses <= bounds + 1e-6))
        if fits and uses.any():
            return uses
    return _greedy(value, rows, bounds, most)


def _greedy(value: Array, rows: Array, bounds: Array, most: Array) -> Ints:
    """The most valuable for what it takes first, as often as it fits: when time is short."""
    uses = np.zeros(len(value), dtype=np.int64)
    left = bounds.copy()
    weight = np.abs(rows).sum(axis=0)
    for c in np.argsort(-value / np.maximum(weight, 1e-12), kind="stable"):
        if value[c] <= 0:
            break
        while uses[c] < most[c] and np.all(rows[:, c] <= left + 1e-9):
            uses[c] += 1
            left -= rows[:, c]
    return uses


def _solver(
    value: Array,
    rows: Array,
    bounds: Array,
    most: Array,
    integers: int = 0,
    time_limit_s: float = math.inf,
) -> Any:
    """HiGHS after it maximised value x with rows x <= bounds and 0 <= x <= most, of which the first
    so many are whole numbers."""
    import highspy

    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", max(LEAST_S, time_limit_s))
    solver.setOptionValue("simplex_iteration_limit", MOST_STEPS)
    solver.setOptionValue("mip_max_nodes", max(LEAST_NODES, NODE_COLUMNS // len(value)))
    loose = len(value) > LARGE and math.isinf(time_limit_s)
    solver.setOptionValue("mip_rel_gap", LARGE_GAP if loose else MIP_GAP)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(value), len(rows)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = value
    lp.col_lower_, lp.col_upper_ = np.zeros(len(value)), most
    lp.row_lower_, lp.row_upper_ = np.full(len(rows), -highspy.kHighsInf), bounds
    columns, places = np.nonzero(rows.T)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.searchsorted(columns, np.arange(len(value) + 1))
    lp.a_matrix_.index_ = places
    lp.a_matrix_.value_ = rows.T[columns, places]
    if integers:
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger] * integers + [kinds.kContinuous] * (
            len(value) - integers
        )
    solver.passModel(lp)
    solver.run()
    return solver
