"""What EC2 says of the region: zones, prices, scores. Asked seldom, and merged into one view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from math import isfinite
from typing import Any

from services.controller.core.cluster.market import MAX_PRICE_PER_HOUR
from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.failures import Matter, Refusal
from services.controller.providers.ec2.offers import BEST_SCORE, Pool, Region

PRODUCT = "Linux/UNIX"


class RegionView:
    """The region as it was seen last."""

    def __init__(
        self, ec2: Calls, instance_types: Sequence[str], subnet_ids: Sequence[str]
    ) -> None:
        """Without `subnet_ids` the default ones count."""
        self._ec2 = ec2
        self._types = list(instance_types)
        self._subnet_ids = list(subnet_ids)
        self._zone_of_subnet: dict[str, str] = {}
        self.seen = Region()

    @property
    def zone_ids(self) -> Mapping[str, str]:
        """The zone's id of each subnet that is used."""
        return self._zone_of_subnet

    async def look_at_zones(self) -> None:
        """Subnets, and which types are to be had in their zones. Raises Refusal."""
        asked: dict[str, Any] = (
            {"SubnetIds": self._subnet_ids}
            if self._subnet_ids
            else {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
        )
        pages = await self._ec2.pages("describe_subnets", **asked)
        rows = [row for page in pages for row in page["Subnets"]]
        if not rows:
            raise Refusal(Matter.OPERATOR, "NoSubnet", "no subnet to start instances in")
        zones = {row["SubnetId"]: row["AvailabilityZoneId"] for row in rows}
        offered = await self._ec2.pages(
            "describe_instance_type_offerings",
            LocationType="availability-zone-id",
            Filters=[{"Name": "instance-type", "Values": self._types}],
        )
        pools = frozenset(
            Pool(row["InstanceType"], row["Location"])
            for page in offered
            for row in page["InstanceTypeOfferings"]
        )
        self._zone_of_subnet = zones
        subnets = dict(sorted(((zone_id, subnet_id) for subnet_id, zone_id in zones.items())))
        self.seen = replace(self.seen, subnets=subnets, pools=pools)

    async def look_at_prices(self, now: datetime) -> None:
        """Spot prices in force. Raises Refusal."""
        pages = await self._ec2.pages(
            "describe_spot_price_history",
            InstanceTypes=self._types,
            ProductDescriptions=[PRODUCT],
            StartTime=now,
        )
        rows = [row for page in pages for row in page["SpotPriceHistory"]]
        self.seen = replace(self.seen, spot_prices=newest_prices(rows))

    async def look_at_scores(self, region: str) -> None:
        """Placement scores of the zones, for these types together: fewer than three types score
        low for that alone, and each other set of types is another of the few that EC2 answers a
        day. Raises Refusal."""
        pages = await self._ec2.pages(
            "get_spot_placement_scores",
            InstanceTypes=self._types,
            TargetCapacity=1,
            SingleAvailabilityZone=True,
            RegionNames=[region],
        )
        rows = [row for page in pages for row in page["SpotPlacementScores"]]
        scores = {
            row["AvailabilityZoneId"]: int(row["Score"])
            for row in rows
            if row.get("Region", region) == region and 1 <= int(row["Score"]) <= BEST_SCORE
        }
        self.seen = replace(self.seen, scores=scores)


def newest_prices(rows: Sequence[Mapping[str, Any]]) -> dict[Pool, float]:
    """Of each pool, from a price history; what is no price is none."""
    newest: dict[Pool, tuple[datetime, float]] = {}
    for row in rows:
        pool = Pool(row["InstanceType"], row.get("AvailabilityZoneId", ""))
        try:
            found = row["Timestamp"], float(row["SpotPrice"])
        except ValueError:
            continue
        is_price = isfinite(found[1]) and 0 < found[1] <= MAX_PRICE_PER_HOUR
        if pool.zone_id and is_price and (pool not in newest or found[0] > newest[pool][0]):
            newest[pool] = found
    return {pool: price for pool, (_, price) in newest.items()}
