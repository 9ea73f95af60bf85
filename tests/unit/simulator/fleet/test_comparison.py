from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.fleet.comparison import compared, estimate
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import read_scenario


def test_an_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.half == pytest.approx(4.302652729911275 / 3**0.5)  # t of two degrees, tables


def test_one_value_says_nothing_of_its_spread() -> None:
    assert estimate([5.0]).half is None
    assert str(estimate([5.0])) == "5"


def test_a_strategy_is_compared_with_the_first_seed_by_seed(write: Callable[..., Path]) -> None:
    one = FleetRun(read_scenario(write(horizon_s=60)), "full", 0).outcome()
    half = replace(one, strategy="none", horizon_s=2 * one.horizon_s)
    runs = [
        one,
        replace(one, seed=1, horizon_s=120.0),
        half,
        replace(half, seed=1, horizon_s=240.0),
    ]
    first, second = compared(runs)
    assert (first.strategy, first.seeds, first.throughput_ratio.mean) == ("full", 2, 1.0)
    assert second.throughput_ratio.mean == pytest.approx(0.5)
    assert second.throughput_ratio.half == pytest.approx(0.0)
    assert (second.measures["throughput_rps"].half or 0.0) > 0
