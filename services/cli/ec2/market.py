"""What EC2 offers this account now, as the controller's own provider will see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from services.cli.ec2.account import Account, AwsRefusal
from services.cli.ec2.quotas import Need, needs
from services.cli.mesh_directory import MeshError
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.hazards import Hazards
from services.controller.providers.ec2.offers import Pool, Region, offers_of
from services.controller.providers.ec2.region import PRODUCT, newest_prices
from services.controller.providers.ec2.table import Table

ZONES = 3
"""That a stack with a network of its own makes subnets in: the first ones by their names."""


def offers_now(account: Account, table: Table, zone_ids: Collection[str] = ()) -> tuple[Offer, ...]:
    """Of each type in each of these zones, or in those that a new stack will use. Raises MeshError
    where there is none, saying which types the region lacks."""
    ec2, types = account.client("ec2"), sorted(table.types)
    zones = tuple(zone_ids) or _zones(account)
    offered = ec2.pages(
        "describe_instance_type_offerings",
        LocationType="availability-zone-id",
        Filters=[{"Name": "instance-type", "Values": types}],
    )
    pools = frozenset(
        Pool(row["InstanceType"], row["Location"])
        for page in offered
        for row in page["InstanceTypeOfferings"]
    )
    history = ec2.pages(
        "describe_spot_price_history",
        InstanceTypes=types,
        ProductDescriptions=[PRODUCT],
        StartTime=datetime.now(UTC),
    )
    rows = [row for page in history for row in page["SpotPriceHistory"]]
    subnets = {zone_id: zone_id for zone_id in zones}  # which one it is, no offer says
    region = Region(subnets, pools, newest_prices(rows))
    offers = offers_of(table, region, Hazards())
    if not offers:
        raise MeshError(
            f"{account.region} ({', '.join(zones)}) offers none of {', '.join(types)}: another"
            " --region, or other types in --types"
        )
    return offers


def _zones(account: Account) -> tuple[str, ...]:
    answer = account.client("ec2").describe_availability_zones(
        Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}]
    )
    rows = sorted(answer["AvailabilityZones"], key=lambda row: str(row["ZoneName"]))
    return tuple(row["ZoneId"] for row in rows[:ZONES])


def zones_of(account: Account, subnet_ids: Sequence[str]) -> tuple[str, ...]:
    """Of subnets, by their ids."""
    if not subnet_ids:
        return ()
    answer = account.client("ec2").describe_subnets(SubnetIds=list(subnet_ids))
    return tuple(sorted(row["AvailabilityZoneId"] for row in answer["Subnets"]))


def quotas_for(account: Account, instances: Sequence[tuple[str, bool, int]]) -> tuple[Need, ...]:
    """What these instances want of the account's quotas of vCPUs, with what it has where it says
    so: who may not ask is told when EC2 refuses."""
    types = sorted({instance_type for instance_type, _, _ in instances})
    if not types:
        return ()
    pages = account.client("ec2").pages("describe_instance_types", InstanceTypes=types)
    vcpus = {
        row["InstanceType"]: int(row["VCpuInfo"]["DefaultVCpus"])
        for page in pages
        for row in page["InstanceTypes"]
    }
    return tuple(
        Need(need.quota, need.vcpus, _limit(account, need)) for need in needs(instances, vcpus)
    )


def _limit(account: Account, need: Need) -> float | None:
    try:
        answer: dict[str, Any] = account.client("service-quotas").get_service_quota(
            ServiceCode=need.quota.service, QuotaCode=need.quota.code
        )
    except AwsRefusal:
        return None
    value = answer.get("Quota", {}).get("Value")
    return None if value is None else float(value)
