"""What others replace is looked at no further, and nothing is lost by that."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from services.placement.search.choice import unreplaced
from services.placement.search.packing import Scenario, pack_scenarios

COUNTS = np.array([3, 2, 4])
POOLS = ((0,), (1,), (0,))
"""Of each class; the first and the last are one's."""


def worth(usage: np.ndarray, value: np.ndarray, rate: float) -> float:
    """Of the best packing under outages of two pools, at a price."""
    prices = usage @ np.array([1.0, 0.8, 2.0]) * 0.1
    cases = [
        Scenario(
            share, np.array([not any(pools[k] & away for k in np.flatnonzero(u)) for u in usage])
        )
        for share, away in ((0.7, set()), (0.15, {0}), (0.1, {1}), (0.05, {0, 1}))
        for pools in [[set(one) for one in POOLS]]
    ]
    uses = pack_scenarios(usage, value, prices, COUNTS, cases, rate, time_limit_s=20.0)
    carried = [float((uses * value) @ case.serves) for case in cases]
    shares = (case.share for case in cases)
    return sum(
        share * (min(rate, one) if rate else one)
        for share, one in zip(shares, carried, strict=True)
    ) - float(uses @ prices)


@pytest.mark.parametrize("seed", range(12))
def test_the_best_packing_is_as_good_without_what_others_replace(seed: int) -> None:
    random = Random(seed)
    usage = np.array([[random.randrange(n) for n in COUNTS] for _ in range(30)])
    usage = usage[usage.sum(axis=1) > 0]
    power = np.array([random.uniform(0.5, 2) for _ in COUNTS])
    value = np.array([float(u @ power) * random.uniform(0.6, 1.2) for u in usage])
    kept = unreplaced(usage, value)
    assert len(kept) < len(usage)
    for rate in (0.0, 4.0):
        every, few = worth(usage, value, rate), worth(usage[kept], value[kept], rate)
        assert few == pytest.approx(every, rel=1e-3, abs=1e-3)


def test_who_is_more_than_its_nodes_alone_stays_and_so_does_who_has_no_other() -> None:
    usage = np.array([[1, 0, 0], [1, 0, 0], [2, 0, 0], [0, 2, 0], [3, 0, 0]])
    value = np.array([1.0, 1.5, 3.5, 0.2, 4.5])
    assert unreplaced(usage, value).tolist() == [1, 2, 3], "3.5 of two beat 3, 4.5 of three do not"
