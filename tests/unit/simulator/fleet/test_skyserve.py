from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import InvalidArgument
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import read_scenario
from simulator.fleet.skyserve import Counts, SpotHedge, Step

PRICES = {"a": 1.0, "b": 2.0, "c": 2.0}
REPLICAS = {"target": 2, "extra": 0}


def test_the_cheapest_active_zone_comes_first_and_of_equal_ones_the_emptier() -> None:
    policy = SpotHedge(list(PRICES), 3, 0)
    assert policy.zone(PRICES, {"a": 9}) == "a"
    policy.took("a")
    assert policy.zone(PRICES, {"b": 1}) == "c"


def test_a_zone_that_took_is_left_alone_until_others_did() -> None:
    policy = SpotHedge(list(PRICES), 3, 0)
    policy.took("a")
    assert policy.zone(PRICES, {}) == "b"
    policy.took("b")  # one is left: all are active again
    assert policy.zone(PRICES, {}) == "a"


def test_a_zone_that_gave_a_replica_is_active() -> None:
    policy = SpotHedge(list(PRICES), 3, 0)
    policy.took("a")
    policy.gave("a")
    assert policy.zone(PRICES, {}) == "a"


@pytest.mark.parametrize(
    ("there", "step"),
    [
        (Counts(0, 0, 0), Step(5, 4)),
        (Counts(5, 0, 4), Step(0, 0)),
        (Counts(5, 3, 4), Step(0, -2)),
        (Counts(5, 5, 2), Step(0, -2)),
        (Counts(6, 6, 0), Step(-1, 0)),
    ],
)
def test_what_is_not_ready_on_spot_runs_on_demand(there: Counts, step: Step) -> None:
    assert SpotHedge(list(PRICES), target=4, extra=1).step(there) == step


def test_replicas_are_replaced_and_their_requests_start_over(write: Callable[..., Path]) -> None:
    scenario = read_scenario(write(strategies=["skyserve"], replicas=REPLICAS))
    outcome = FleetRun(scenario, "skyserve", 0).outcome()
    assert [one.nodes for one in outcome.interruptions] == [1, 1]
    assert outcome.counts.moves > 0
    assert outcome.counts.lost > 0  # tokens that are sampled again
    assert outcome.counts.finished > 60
    firm = [sample.nodes.get("firm", 0) for sample in outcome.samples]
    assert max(firm) > 0  # while spot ones start


def test_skyserve_has_to_be_told_how_many(write: Callable[..., Path]) -> None:
    with pytest.raises(InvalidArgument, match=r"scenario.yaml:1: replicas: "):
        read_scenario(write(strategies=["skyserve"]))
