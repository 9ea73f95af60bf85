"""Live prices come from EC2; here from moto."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

import pytest

from services.placement.command.prices import spot_prices
from tests.ec2.in_process import mocked

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(zone: str, price: str, age_s: int) -> dict[str, object]:
    return {
        "InstanceType": "g6e.xlarge",
        "AvailabilityZone": zone,
        "SpotPrice": price,
        "Timestamp": NOW - timedelta(seconds=age_s),
    }


class Paged:
    """Two pages of history."""

    def __init__(self) -> None:
        self.pages = {
            "": {"SpotPriceHistory": [row("a", "0.7", 60), row("b", "0.9", 10)], "NextToken": "2"},
            "2": {"SpotPriceHistory": [row("a", "0.8", 5), row("b", "1.0", 90)]},
        }

    def describe_spot_price_history(self, **arguments):
        return self.pages[arguments.get("NextToken", "")]


def test_the_newest_price_of_each_pool_is_taken_over_all_pages():
    found = spot_prices(Paged(), ["g6e.xlarge"], NOW)
    assert [(p.pool, p.price_per_hour) for p in found] == [
        ("g6e.xlarge/a", 0.8),
        ("g6e.xlarge/b", 0.9),
    ]


def test_the_answers_of_ec2_are_understood(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        boto3 = pytest.importorskip("boto3")
        pytest.importorskip("moto")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        with mocked():
            client = boto3.client("ec2", region_name="eu-west-1")
            found = spot_prices(client, ["g4dn.xlarge"], NOW)
    assert found
    assert all(p.instance_type == "g4dn.xlarge" and p.price_per_hour > 0 for p in found)
    assert len({p.pool for p in found}) == len(found)
