"""Packings are the best there are."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from services.placement.search import packing
from services.placement.search.packing import Limits, Scenario, pack, pack_scenarios

USAGE = np.array([[1, 0], [0, 2], [2, 1], [1, 3]])
VALUE = np.array([1.0, 2.5, 4.1, 5.0])
COUNTS = np.array([4, 5])


def best_value(accept=lambda uses: True):
    every = (np.array(uses) for uses in product(range(5), repeat=4))
    fits = (u for u in every if np.all(u @ USAGE <= COUNTS) and accept(u))
    return max(float(u @ VALUE) for u in fits)


def test_a_packing_is_the_best_of_all():
    uses = pack(USAGE, VALUE, COUNTS, time_limit_s=5)
    assert np.all(uses @ USAGE <= COUNTS)
    assert uses @ VALUE == pytest.approx(best_value())


def test_a_packing_with_a_limit_is_the_best_within_it():
    limits = Limits(np.array([[1.0, 1.0, 2.0, 2.0]]), np.array([3.0]))
    uses = pack(USAGE, VALUE, COUNTS, time_limit_s=5, limits=limits)
    assert uses @ limits.rows[0] <= 3
    assert uses @ VALUE == pytest.approx(best_value(lambda u: u @ limits.rows[0] <= 3), rel=1e-4)


def test_scenarios_value_what_survives():
    usage = np.eye(2, dtype=np.int64)
    shares = [(0.5, [True, True]), (0.3, [False, True]), (0.2, [True, False])]
    cases = [Scenario(share, np.array(serves)) for share, serves in shares]
    value, cost = np.array([10.0, 10.0]), np.array([0.1, 0.1])
    capped = pack_scenarios(usage, value, cost, np.array([2, 2]), cases, 10.0, time_limit_s=5)
    assert capped.tolist() == [1, 1]  # one on each side carries the rate in every outage


def test_a_search_that_would_go_on_for_long_ends_by_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "NODE_COLUMNS", 20 * 40)
    random, nodes = np.random.default_rng(1), list[int]()
    usage = random.integers(20, 60, (40, 5))
    value = usage.sum(axis=1) + random.uniform(0, 1, 40)
    solver = packing._solver

    def told(*asked: Any) -> Any:
        solved = solver(*asked)
        nodes.append(int(solved.getInfo().mip_node_count))
        return solved

    monkeypatch.setattr(packing, "_solver", told)
    counts = np.full(5, 997)
    first, second = (pack(usage, value, counts, time_limit_s=math.inf) for _ in range(2))
    assert first.any()
    assert np.all(first @ usage <= counts)
    assert first.tolist() == second.tolist()
    assert nodes[0] == nodes[1] <= 20
    monkeypatch.setattr(packing, "NODE_COLUMNS", 100 * 40)
    pack(usage, value, counts, time_limit_s=math.inf)
    assert nodes[2] > 20
