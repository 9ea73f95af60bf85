"""Kuhn-Munkres finds the cheapest matching."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from services.placement.replan.assignment import assign


@pytest.mark.parametrize("seed", range(20))
def test_the_matching_is_the_cheapest_of_all(seed):
    draw = np.random.default_rng(seed)
    rows, columns = int(draw.integers(1, 5)), 5
    cost = draw.integers(-9, 10, (rows, columns)).astype(float)
    found = assign(cost)
    assert len(set(found.tolist())) == rows
    every = (cost[range(rows), list(p)].sum() for p in permutations(range(columns), rows))
    assert cost[range(rows), found].sum() == pytest.approx(min(every))
