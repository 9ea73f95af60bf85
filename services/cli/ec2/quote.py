"""What a mesh would be and cost, before anything of it is bought."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from services.cli.ec2.account import Account
from services.cli.ec2.market import offers_now, quotas_for
from services.cli.ec2.purchase import Purchase, Wish, purchase
from services.cli.ec2.quotas import Need
from services.cli.ec2.standing import Standing
from services.cli.ec2.stored import Stored
from services.cli.tables import text_table
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.offers import Ware
from services.controller.providers.ec2.table import Table as Types
from services.placement.command.report import pipeline_table, pipeline_title
from services.placement.stopwatch import Stopwatch

SEARCH_S = 20.0
_HOURS_A_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class Quote:
    """What would be bought where, and what that costs."""

    account: Account
    model: Stored
    offers: tuple[Offer, ...]
    found: Purchase
    needs: tuple[Need, ...]
    standing: Standing

    @property
    def per_hour(self) -> float | None:
        """Of all, at the prices in force; None where some price is not known."""
        rest = self.standing.per_hour
        return None if rest is None else self.found.cost_per_hour + rest


def quote(
    account: Account,
    model: Stored,
    types: Types,
    wish: Wish,
    standing: Standing,
    zone_ids: Collection[str] = (),
) -> Quote:
    """Asks EC2 for offers and prices, and the planner for pipelines. Raises MeshError."""
    offers = offers_now(account, types, zone_ids)
    found = purchase(model.shape, types, offers, wish, Stopwatch(SEARCH_S))
    needs = quotas_for(account, found.instances)
    return Quote(account, model, offers, found, needs, standing)


def quote_json(one: Quote) -> dict[str, Any]:
    """For scripts; what nobody knows is null."""
    plan: Mapping[str, Any] = one.found.plan
    return {
        "account": one.account.number,
        "region": one.account.region,
        "model": {"name": one.model.name, "digest": one.model.digest or None},
        "offers": [_offer(offer) for offer in one.offers],
        "first_nodes": one.found.first_nodes,
        "nodes": [
            {"offer": offer.offer_id, "count": count, "price_per_hour": offer.price_per_hour}
            for offer, count in one.found.bought
        ],
        "pipelines": plan["pipelines"],
        "estimate": {
            name: plan[name] for name in ("throughput_rps", "ttft_s", "tpot_s", "end_to_end_s")
        },
        "cost_per_hour": one.found.cost_per_hour,
        "on_demand_cost_per_hour": one.found.on_demand_per_hour,
        "standing": [{"what": what, "per_hour": price} for what, price in one.standing.rows],
        "total_cost_per_hour": one.per_hour,
        "quotas": [
            {
                "code": need.quota.code,
                "name": need.quota.name,
                "vcpus": need.vcpus,
                "limit": need.limit,
                "short": need.is_short,
            }
            for need in one.needs
        ],
    }


def _offer(offer: Offer) -> dict[str, Any]:
    ware = Ware.of(offer.offer_id)
    return {
        "id": offer.offer_id,
        "instance_type": offer.instance_type,
        "zone_id": ware.pool.zone_id if ware else None,
        "spot": offer.spot,
        "price_per_hour": offer.price_per_hour,
        "count": offer.count,
        "interruptions_per_hour": offer.interruptions_per_hour,
        "launch_s": offer.launch_s,
    }


def quote_text(one: Quote) -> Group:
    """The offers, what is taken of them, its pipelines, and the price of all."""
    taken = {offer.offer_id: count for offer, count in one.found.bought}
    offers = text_table("offer", "market", "price an hour", "buys", whole="offer")
    for offer in one.offers:
        price = offer.price_per_hour
        offers.add_row(
            offer.offer_id,
            "spot" if offer.spot else "on demand",
            "" if price is None else f"{price:.4g}",
            str(taken.get(offer.offer_id, "")),
        )
    pipelines = [
        pipeline_table(pipeline_title(pipeline), pipeline)
        for pipeline in one.found.plan["pipelines"]
    ]
    head = f"{one.model.name} in {one.account.region}, account {one.account.number}"
    return Group(Text(head), offers, *pipelines, *_costs(one), *map(_need, one.needs))


def _costs(one: Quote) -> list[RenderableType]:
    table = text_table("cost", "dollars an hour")
    table.add_row(f"nodes now: {one.found.first_nodes}", f"{one.found.cost_per_hour:.4g}")
    for what, price in one.standing.rows:
        table.add_row(what, "not known" if price is None else f"{price:.4g}")
    if one.per_hour is not None:
        table.add_row("together", f"{one.per_hour:.4g}")
    lines = [f"all nodes on demand would cost {one.found.on_demand_per_hour:.4g} an hour"]
    if one.per_hour is not None:
        lines.append(f"a month like this: about {one.per_hour * _HOURS_A_MONTH:,.0f} dollars")
    return [table, *map(Text, lines)]


def _need(need: Need) -> Text:
    line = f"quota '{need.quota.name}': {need.vcpus} vCPUs"
    if need.limit is None:
        return Text(f"{line}; how many the account has, it does not tell")
    if need.is_short:
        return Text(
            f"{line}, and the account has {need.limit:g}: {need.quota.request}", style="red"
        )
    return Text(f"{line} of {need.limit:g}")
