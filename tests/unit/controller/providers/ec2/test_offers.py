from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.nodes import NodeShape
from services.controller.core.cluster.market import MAX_LAUNCH_S, check
from services.controller.providers.ec2.hazards import Hazards
from services.controller.providers.ec2.offers import (
    Pool,
    Region,
    Ware,
    as_cheap,
    expected_launch_s,
    offers_of,
)
from services.controller.providers.ec2.table import InstanceType, Reservation, Table

BIG = InstanceType("g6e.xlarge", NodeShape(1000, 2.0), 4, 2.0, 0.1, 60.0)
A, B = Pool("g6e.xlarge", "z-1"), Pool("g6e.xlarge", "z-2")
TABLE = Table({BIG.name: BIG}, (Reservation("cr-01234567", BIG.name, "z-1", 1, 1.5),))
REGION = Region({"z-1": "subnet-1", "z-2": "subnet-2"}, frozenset({A, B}), {A: 0.5, B: 0.6})


def names(table: Table, region: Region) -> list[str]:
    return [one.offer_id for one in offers_of(table, region, Hazards())]


def test_each_pool_is_an_offer_on_each_market() -> None:
    assert names(TABLE, REGION) == [
        "g6e.xlarge/z-1/cr-01234567",
        "g6e.xlarge/z-1/on-demand",
        "g6e.xlarge/z-1/spot",
        "g6e.xlarge/z-2/on-demand",
        "g6e.xlarge/z-2/spot",
    ]
    for one in offers_of(TABLE, REGION, Hazards()):
        check(one)


@pytest.mark.parametrize(
    ("table", "region", "missing"),
    [
        (TABLE, replace(REGION, spot_prices={B: 0.6}), "g6e.xlarge/z-1/spot"),
        (TABLE, replace(REGION, pools=frozenset({A})), "g6e.xlarge/z-2/spot"),
        (TABLE, replace(REGION, subnets={"z-2": "subnet-2"}), "g6e.xlarge/z-1/cr-01234567"),
        (Table({BIG.name: replace(BIG, spot=False)}), REGION, "g6e.xlarge/z-1/spot"),
        (Table({BIG.name: replace(BIG, on_demand=False)}), REGION, "g6e.xlarge/z-1/on-demand"),
    ],
)
def test_what_is_not_to_be_had_is_no_offer(table: Table, region: Region, missing: str) -> None:
    assert missing in names(TABLE, REGION)
    assert missing not in names(table, region)


def test_only_spot_has_a_hazard_and_it_is_corrected_by_what_was_seen() -> None:
    hazards = Hazards()
    for _ in range(5):
        hazards.interrupted(A.name)
    found = {one.offer_id: one.interruptions_per_hour for one in offers_of(TABLE, REGION, hazards)}
    assert found["g6e.xlarge/z-1/spot"] > found["g6e.xlarge/z-2/spot"] == 0.1
    assert found["g6e.xlarge/z-1/on-demand"] == found["g6e.xlarge/z-1/cr-01234567"] == 0.0


def test_a_score_is_advice_on_how_long_a_launch_takes() -> None:
    region = replace(REGION, scores={"z-1": 4})
    found = {one.offer_id: one.launch_s for one in offers_of(TABLE, region, Hazards())}
    assert found["g6e.xlarge/z-1/spot"] == 150.0
    assert found["g6e.xlarge/z-1/on-demand"] == found["g6e.xlarge/z-2/spot"] == 60.0
    assert [expected_launch_s(60.0, score) for score in (None, 0, 11, 10)] == [60.0] * 4
    assert expected_launch_s(500.0, 1) == MAX_LAUNCH_S


def test_ec2_may_choose_among_what_costs_no_more_than_the_slack() -> None:
    offers = offers_of(TABLE, REGION, Hazards())
    spot = next(one for one in offers if one.offer_id == "g6e.xlarge/z-1/spot")
    assert as_cheap(spot, offers, 0.1) == (spot,)
    assert [o.pool for o in as_cheap(spot, offers, 0.21)] == ["g6e.xlarge/z-1", "g6e.xlarge/z-2"]
    dearer = next(one for one in offers if one.offer_id == "g6e.xlarge/z-2/spot")
    assert [o.pool for o in as_cheap(dearer, offers, 0.0)] == ["g6e.xlarge/z-2", "g6e.xlarge/z-1"]
    reserved = next(one for one in offers if one.offer_id == "g6e.xlarge/z-1/cr-01234567")
    assert as_cheap(reserved, offers, 1.0) == (reserved,)


@pytest.mark.parametrize("text", ["", "a", "a/b", "a/b/", "a/b/c/d"])
def test_only_an_offers_name_is_a_ware(text: str) -> None:
    assert Ware.of(text) is None
    assert Ware.of("a/b/spot") == Ware(Pool("a", "b"), "spot")
