"""What the machines of a mesh cost now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.cli.ec2.account import Account
from services.cli.ec2.files import TYPES
from services.cli.ec2.machines import Machine
from services.cli.ec2.secrets import Parameters
from services.controller.providers.ec2.offers import SPOT, Pool, Ware
from services.controller.providers.ec2.region import PRODUCT, newest_prices
from services.controller.providers.ec2.table import Table, parse_table, read_table

TYPES_NAME = "types"
"""The parameter that the controller's host reads its types from."""


@dataclass(frozen=True, slots=True)
class Spend:
    """Of nodes; what nobody knows the price of is counted apart."""

    per_hour: float
    on_demand_per_hour: float
    unknown: int


def table_of(parameters: Parameters) -> Table:
    """The types that the mesh was made with; those that come with the commands where there is no
    such mesh. Raises AwsRefusal."""
    text = parameters.get(TYPES_NAME)
    return read_table(TYPES) if text is None else parse_table(text, TYPES.name)


def spend_of(account: Account, table: Table, nodes: Sequence[Machine]) -> Spend:
    """At the prices in force, by the offer that each was ordered from. Raises AwsRefusal."""
    wares = [Ware.of(node.offer) for node in nodes]
    prices = _spot_prices(account, sorted({w.pool.instance_type for w in wares if w}))
    per_hour = on_demand = 0.0
    unknown = 0
    for ware in wares:
        price = None if ware is None else _price(ware, table, prices)
        if ware is None or price is None:
            unknown += 1
            continue
        per_hour += price
        on_demand += table.dollars_per_hour(ware.pool.instance_type)
    return Spend(per_hour, on_demand, unknown)


def _price(ware: Ware, table: Table, prices: dict[Pool, float]) -> float | None:
    if ware.market == SPOT:
        return prices.get(ware.pool)
    if ware.reservation_id:
        own = (r for r in table.reservations if r.reservation_id == ware.reservation_id)
        return next((reserved.price_per_hour for reserved in own), None)
    known = table.types.get(ware.pool.instance_type)
    return None if known is None else known.price_per_hour


def _spot_prices(account: Account, types: Sequence[str]) -> dict[Pool, float]:
    if not types:
        return {}
    pages = account.client("ec2").pages(
        "describe_spot_price_history",
        InstanceTypes=list(types),
        ProductDescriptions=[PRODUCT],
        StartTime=datetime.now(UTC),
    )
    return newest_prices([row for page in pages for row in page["SpotPriceHistory"]])
