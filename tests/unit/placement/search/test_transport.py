"""Who hands how much on to whom, where prefill and decode are apart."""

from __future__ import annotations

import numpy as np
import pytest

from services.placement.search.transport import Sides, even_flows, match

ENOUGH = 1e9


def sides(supply: list[float], demand: list[float], link: float = ENOUGH) -> Sides:
    m, n = len(supply), len(demand)
    return Sides(
        list(range(m)),
        list(range(m, m + n)),
        np.array(supply),
        np.array(demand),
        np.full((m, n), link),
    )


@pytest.mark.parametrize(
    ("supply", "demand", "expected"),
    [
        ([10.0], [10.0, 10.0], [5.0, 5.0]),
        ([10.0], [10.0, 30.0], [2.5, 7.5]),
        ([30.0, 10.0], [20.0], [20.0]),
        ([4.0, 4.0], [2.0, 6.0], [2.0, 6.0]),
    ],
)
def test_those_that_decode_have_shares_of_what_they_can_take(
    supply: list[float], demand: list[float], expected: list[float]
) -> None:
    flows = even_flows(sides(supply, demand))
    assert flows.sum(axis=0) == pytest.approx(expected, rel=0.01)


def test_those_that_prefill_have_shares_too_where_they_are_too_many() -> None:
    flows = even_flows(sides([30.0, 10.0], [20.0]))
    assert flows.sum(axis=1) == pytest.approx([15.0, 5.0], rel=0.01)


def test_evenness_costs_nothing_and_no_link_carries_more_than_it_can() -> None:
    draw = np.random.default_rng(7)
    for _ in range(20):
        m, n = draw.integers(1, 4, size=2)
        given = sides(list(draw.uniform(1, 9, m)), list(draw.uniform(1, 9, n)), link=3.0)
        flows, most = even_flows(given), match(given.supply, given.demand, given.links).sum()
        assert most * 0.995 <= flows.sum() <= most * (1 + 1e-6)
        assert (flows <= given.links + 1e-6).all()
        assert (flows.sum(axis=1) <= given.supply + 1e-6).all()
        assert (flows.sum(axis=0) <= given.demand + 1e-6).all()
