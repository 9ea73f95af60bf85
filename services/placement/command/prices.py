"""Spot prices as EC2 has them now: the newest of each type and zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

PRODUCT = "Linux/UNIX"
MAX_PAGES = 50


class Ec2(Protocol):
    """What is used of a boto3 EC2 client."""

    def describe_spot_price_history(self, **arguments: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SpotPrice:
    """Dollars an hour of a type in a zone: a capacity pool."""

    instance_type: str
    zone: str
    price_per_hour: float

    @property
    def pool(self) -> str:
        return f"{self.instance_type}/{self.zone}"


def spot_prices(ec2: Ec2, instance_types: Sequence[str], since: datetime) -> list[SpotPrice]:
    """The newest price of each pool, by type and zone; types without a market are missing."""
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    token = ""
    for _ in range(MAX_PAGES):
        page = ec2.describe_spot_price_history(
            InstanceTypes=list(instance_types),
            ProductDescriptions=[PRODUCT],
            StartTime=since,
            **({"NextToken": token} if token else {}),
        )
        for row in page["SpotPriceHistory"]:
            key = row["InstanceType"], row["AvailabilityZone"]
            seen = row["Timestamp"], float(row["SpotPrice"])
            if key not in newest or seen[0] > newest[key][0]:
                newest[key] = seen
        token = page.get("NextToken", "")
        if not token:
            break
    return [SpotPrice(*key, price) for key, (_, price) in sorted(newest.items())]
