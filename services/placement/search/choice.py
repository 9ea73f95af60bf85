"""Which candidates an objective chooses, given what each carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.budget import SearchBudget, solver_s
from services.placement.search.columns import Members
from services.placement.search.field import SearchField
from services.placement.search.packing import Limits, pack, pack_scenarios
from services.placement.search.problem import ObjectiveKind
from services.placement.search.rates import Ints
from services.placement.search.risk import down_shares, scenarios

ROUNDS = 12
SOLVE_S = 3.0
"""Of one solve, where there is a clock."""
Choose = Callable[[Array], Ints]


def chooser(
    ground: SearchField, members: Sequence[Members], budget: SearchBudget, room: float = 1.0
) -> Choose:
    """From what each candidate carries to how often each is used. Where cost counts, what is to be
    carried is so many times what arrives (`room`): requests are late where everything is busy."""
    objective = ground.problem.objective
    usage, counts = ground.usage(members), ground.counts
    prices = np.array([kind.price_per_hour for kind in ground.stock.kinds])
    cost = usage @ prices
    limits = _limits(ground, usage, prices, cost)
    rate = room * ground.problem.costs.workload.arrival_rate_rps

    def seconds() -> float:
        return solver_s(budget, SOLVE_S)

    def most(value: Array) -> Ints:
        return pack(usage, value, counts, time_limit_s=seconds(), limits=limits)

    def cheapest(value: Array) -> Ints:
        """Carries the arrival rate at the least cost."""
        rows, bounds = -value[None, :], np.array([-rate])
        if limits is not None:
            rows, bounds = np.vstack([rows, limits.rows]), np.append(bounds, limits.bounds)
        cover = Limits(rows, bounds)
        uses = pack(usage, -cost - 1e-9, counts, time_limit_s=seconds(), limits=cover)
        return uses if uses.any() else most(value)

    def per_cost(value: Array) -> Ints:
        """Dinkelbach: the best value - price x cost, until the price is the ratio reached."""
        price, best = 0.0, np.zeros(len(value), dtype=np.int64)
        for _ in range(ROUNDS):
            uses = most(value - price * cost * (1 - 1e-9))
            spent = float(uses @ cost)
            if not uses.any() or spent <= 0:
                break
            best, ratio = uses, float(uses @ value) / spent
            if ratio <= price * (1 + 1e-7):
                break
            price = ratio
        return best

    def goodput(value: Array) -> Ints:
        """Dinkelbach over expected goodput, among those that no others replace."""
        some = unreplaced(usage, value)
        best = np.zeros(len(value), dtype=np.int64)
        best[some] = among(some, value[some])
        return best

    def among(some: Ints, value: Array) -> Ints:
        down = down_shares(ground.problem.nodes, objective.recovery_s)
        cases = scenarios(_pools(ground, [members[i] for i in some]), down)
        part = None if limits is None else Limits(limits.rows[:, some], limits.bounds)
        price, best = 0.0, np.zeros(len(value), dtype=np.int64)
        for _ in range(ROUNDS):
            uses = pack_scenarios(
                usage[some],
                value,
                price * cost[some],
                counts,
                cases,
                rate,
                time_limit_s=seconds(),
                limits=part,
            )
            spent = float(uses @ cost[some])
            if not uses.any() or spent <= 0:
                break
            carried = [float((uses * value) @ case.serves) for case in cases]
            expected = sum(
                case.share * (min(rate, c) if rate else c)
                for case, c in zip(cases, carried, strict=True)
            )
            if price and expected / spent <= price * (1 + 1e-6):
                break
            best, price = uses, expected / spent
        return best

    if objective.kind is ObjectiveKind.GOODPUT_PER_COST:
        return goodput
    if objective.kind is ObjectiveKind.THROUGHPUT_PER_COST:
        return cheapest if rate else per_cost
    return most


def unreplaced(usage: Ints, value: Array) -> Ints:
    """Places of the candidates that are worth looking at: of those that take the same nodes the one
    that carries most, and none that carries no more than its nodes do as pipelines of one each. The
    others cost the same and are away whenever one of its pools is.

    `usage` [candidates, classes], `value` [candidates]; of ones that are as good the first stays.
    """
    order = np.lexsort((np.arange(len(value)), -value))
    _, first = np.unique(usage[order], axis=0, return_index=True)
    best = np.sort(order[first])
    alone = np.zeros(usage.shape[1])
    single = best[usage[best].sum(axis=1) == 1]
    alone[usage[single].argmax(axis=1)] = value[single]
    taken, carried = usage[best], value[best]
    apart = np.where(taken > 0, alone > 0, True).all(axis=1) & (taken.sum(axis=1) > 1)
    kept: Ints = best[~(apart & (taken @ alone >= carried))]
    return kept


def _pools(ground: SearchField, members: Sequence[Members]) -> list[frozenset[str]]:
    pools = [ground.stock.kinds[option.kind].pool for option in ground.options]
    return [frozenset(pools[o] for o in group) for group in members]


def _limits(ground: SearchField, usage: Ints, prices: Array, cost: Array) -> Limits | None:
    """SearchBudget, and the share of cost that is not on the spot market."""
    objective = ground.problem.objective
    rows, bounds = [], []
    if objective.budget_per_hour:
        rows.append(cost)
        bounds.append(objective.budget_per_hour)
    if objective.min_on_demand_share:
        firm = np.array([not kind.spot for kind in ground.stock.kinds])
        rows.append(objective.min_on_demand_share * cost - usage @ (prices * firm))
        bounds.append(0.0)
    return Limits(np.array(rows), np.array(bounds)) if rows else None
