from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.failures import Refusal
from services.controller.providers.ec2.offers import Pool
from services.controller.providers.ec2.region import RegionView, newest_prices

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(price: str, age_s: float = 0.0, zone_id: str = "z") -> dict[str, Any]:
    return {
        "InstanceType": "g5.xlarge",
        "AvailabilityZoneId": zone_id,
        "SpotPrice": price,
        "Timestamp": NOW - timedelta(seconds=age_s),
    }


def test_the_newest_price_of_each_pool_counts() -> None:
    rows = [row("0.4", 60), row("0.5", 5), row("0.6", 90), row("0.7", 1, "y")]
    assert newest_prices(rows) == {Pool("g5.xlarge", "z"): 0.5, Pool("g5.xlarge", "y"): 0.7}


@pytest.mark.parametrize("price", ["", "free", "0", "-1", "nan", "inf", "1e9"])
def test_what_is_no_price_is_none(price: str) -> None:
    assert newest_prices([row(price)]) == {}
    assert newest_prices([row("0.4", zone_id="")]) == {}


class Client:
    """A region of two zones, of which one has two subnets."""

    def __init__(self, subnets: list[tuple[str, str]], scores: list[tuple[str, str, int]]) -> None:
        self.subnets, self.scores = subnets, scores
        self.asked: list[dict[str, Any]] = []

    def describe_subnets(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        return {"Subnets": [{"SubnetId": s, "AvailabilityZoneId": z} for s, z in self.subnets]}

    def describe_instance_type_offerings(self, **asked: Any) -> dict[str, Any]:
        return {"InstanceTypeOfferings": [{"InstanceType": "g5.xlarge", "Location": "z-1"}]}

    def get_spot_placement_scores(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        names = ("Region", "AvailabilityZoneId", "Score")
        return {"SpotPlacementScores": [dict(zip(names, s, strict=True)) for s in self.scores]}


SUBNETS = [("subnet-1", "z-1"), ("subnet-2", "z-2"), ("subnet-3", "z-1")]


async def test_a_zone_has_one_subnet_and_every_subnet_its_zone() -> None:
    client = Client(SUBNETS, [])
    view = RegionView(Calls(client, limit_s=1), ["g5.xlarge"], ["subnet-1"])
    await view.look_at_zones()
    assert view.seen.subnets.keys() == {"z-1", "z-2"}
    assert view.zone_ids == dict(SUBNETS)
    assert view.seen.pools == {Pool("g5.xlarge", "z-1")}
    assert client.asked == [{"SubnetIds": ["subnet-1"]}]


async def test_without_a_subnet_an_operator_is_told() -> None:
    view = RegionView(Calls(Client([], []), limit_s=1), ["g5.xlarge"], [])
    with pytest.raises(Refusal, match="NoSubnet"):
        await view.look_at_zones()


async def test_scores_are_asked_for_all_types_at_once_and_strange_ones_are_none() -> None:
    client = Client([], [("here", "z-1", 7), ("here", "z-2", 11), ("there", "z-3", 5)])
    view = RegionView(Calls(client, limit_s=1), ["g5.xlarge", "g6.xlarge"], [])
    await view.look_at_scores("here")
    assert view.seen.scores == {"z-1": 7}
    assert [asked["InstanceTypes"] for asked in client.asked] == [["g5.xlarge", "g6.xlarge"]]
