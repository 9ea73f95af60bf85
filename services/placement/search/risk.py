"""What interruptions cost: pools go away whole, at their rates, for the time of a recovery.

Nodes of one type and zone are interrupted together (over nine in ten within three minutes), so a
pool is up or down as one. It is down a share h R / (1 + h R) of the time, h its interruptions an
hour and R the recovery in hours; pools fail independently. A pipeline serves while every pool it
touches is up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.search.packing import Scenario

MAX_POOLS_EXACT = 10
MOST_DOWN = 2


def down_shares(nodes: Sequence[CandidateNode], recovery_s: float) -> dict[str, float]:
    """By pool: the share of the time it is away."""
    rates: dict[str, float] = {}
    for node in nodes:
        pool = node.kind.pool
        rates[pool] = max(rates.get(pool, 0.0), node.kind.interruptions_per_hour)
    hours = recovery_s / 3600
    return {pool: h * hours / (1 + h * hours) for pool, h in rates.items()}


def outages(down: Mapping[str, float]) -> list[tuple[float, frozenset[str]]]:
    """Shares of the time in which exactly these pools are away; they sum to 1.

    Many pools: at most two away at once, the rest of the time counts as the worst of those.
    """
    risky = [pool for pool, share in down.items() if share > 0]
    most = len(risky) if len(risky) <= MAX_POOLS_EXACT else MOST_DOWN
    found = []
    for size in range(most + 1):
        for away in combinations(risky, size):
            share = float(np.prod([down[p] if p in away else 1 - down[p] for p in risky]))
            found.append((share, frozenset(away)))
    missing = 1.0 - sum(share for share, _ in found)
    return [*found, (missing, frozenset(risky))] if missing > 1e-12 else found


def scenarios(pools: Sequence[frozenset[str]], down: Mapping[str, float]) -> list[Scenario]:
    """Outages as seen by candidates that touch these pools."""
    return [
        Scenario(share, np.array([not (touched & away) for touched in pools]))
        for share, away in outages(down)
    ]


def goodput_rps(
    pipelines: Sequence[PlacedPipeline],
    carried_rps: Callable[[Sequence[int]], float],
    down: Mapping[str, float],
    arrival_rate_rps: float = 0.0,
) -> float:
    """Expected requests a second: in each outage what those that still serve carry together, by
    their places, up to what arrives."""
    touched = [frozenset(s.node.kind.pool for s in p.stages) for p in pipelines]
    expected = 0.0
    for share, away in outages(down):
        left = carried_rps([place for place, pools in enumerate(touched) if not pools & away])
        expected += share * (min(left, arrival_rate_rps) if arrival_rate_rps else left)
    return expected
