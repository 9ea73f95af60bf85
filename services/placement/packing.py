"""The best multiset of candidate pipelines that the inventory allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.rates import Ints
from services.placement.roofline import Array

DP_CELLS = 1.5e7


@dataclass(frozen=True)
class Packing:
    """How often each candidate is used, and the value of all."""

    uses: Ints  # [candidates]
    value: float


def pack(
    usage: Ints,
    value: Array,
    counts: Ints,
    *,
    time_limit_s: float,
    extra: Array | None = None,
    limit: float = 0.0,
) -> Packing:
    """Maximises uses x value with uses x usage <= counts (and uses x extra <= limit).

    `usage` is [candidates, classes]. Small inventories by a dynamic programme, which is exact;
    others by HiGHS until the time limit.
    """
    states = float(np.prod(counts + 1.0))
    if extra is None and states * len(usage) <= DP_CELLS:
        return _dynamic(usage, value, counts)
    return _mixed_integer(usage, value, counts, time_limit_s, extra, limit)


def _dynamic(usage: Ints, value: Array, counts: Ints) -> Packing:
    shape = tuple(int(n) + 1 for n in counts)
    best = np.zeros(shape)
    choice = np.full(shape, -1, dtype=np.int64)
    for c in np.argsort(-value, kind="stable"):
        u = usage[c]
        if value[c] <= 0 or np.any(u > counts):
            continue
        into = tuple(slice(int(n), None) for n in u)
        most = min(int(counts[k] // u[k]) for k in range(len(u)) if u[k])
        for _ in range(most):
            source = best[tuple(slice(0, shape[k] - int(u[k])) for k in range(len(u)))]
            better = source + value[c] > best[into] + 1e-12
            if not better.any():
                break
            best[into] = np.where(better, source + value[c], best[into])
            choice[into] = np.where(better, c, choice[into])
    uses = np.zeros(len(usage), dtype=np.int64)
    state = tuple(int(n) for n in counts)
    while (c := int(choice[state])) >= 0:
        uses[c] += 1
        state = tuple(s - int(n) for s, n in zip(state, usage[c], strict=True))
    return Packing(uses, float(uses @ value))


def _highs(
    usage: Ints, value: Array, counts: Ints, extra: Array | None, limit: float
) -> tuple[object, object]:
    import highspy

    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("threads", 1)
    rows = usage.T.astype(float) if extra is None else np.vstack([usage.T, extra])
    upper = counts.astype(float) if extra is None else np.append(counts, limit)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(usage), len(rows)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = value
    lp.col_lower_ = np.zeros(len(usage))
    lp.col_upper_ = np.where(usage > 0, counts // np.maximum(usage, 1), counts.max()).min(axis=1)
    lp.row_lower_ = np.full(len(rows), -highspy.kHighsInf)
    lp.row_upper_ = upper
    place = np.nonzero(rows.T)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.searchsorted(place[0], np.arange(len(usage) + 1))
    lp.a_matrix_.index_ = place[1]
    lp.a_matrix_.value_ = rows.T[place]
    return solver, lp


def class_prices(usage: Ints, value: Array, counts: Ints) -> Array:
    """What one more node of each class is worth to the linear relaxation; [classes]."""
    solver, lp = _highs(usage, value, counts, None, 0.0)
    solver.passModel(lp)  # type: ignore[attr-defined]
    solver.run()  # type: ignore[attr-defined]
    return np.abs(np.asarray(solver.getSolution().row_dual))  # type: ignore[attr-defined]


def _mixed_integer(
    usage: Ints,
    value: Array,
    counts: Ints,
    time_limit_s: float,
    extra: Array | None,
    limit: float,
) -> Packing:
    import highspy

    solver, lp = _highs(usage, value, counts, extra, limit)
    lp.integrality_ = [highspy.HighsVarType.kInteger] * len(usage)  # type: ignore[attr-defined]
    solver.setOptionValue("time_limit", max(0.05, time_limit_s))  # type: ignore[attr-defined]
    solver.setOptionValue("mip_rel_gap", 1e-4)  # type: ignore[attr-defined]
    solver.passModel(lp)  # type: ignore[attr-defined]
    solver.run()  # type: ignore[attr-defined]
    found = np.asarray(solver.getSolution().col_value)  # type: ignore[attr-defined]
    if not len(found):
        return Packing(np.zeros(len(usage), dtype=np.int64), 0.0)
    uses = np.rint(found).astype(np.int64)
    return Packing(uses, float(uses @ value))
