"""Random spot markets: hours of prices, capacity and arrivals, drawn from a seed.

Spot prices revert to a mean of their own and jump now and then; capacity comes and goes by the
pool, and with it the nodes that run there; on-demand nodes are always to be had, at their price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Kind:
    """An instance type as a market sells it."""

    instance_type: str
    price_per_hour: float
    """On demand."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The market from `at_s` on, until the next one."""

    at_s: float
    offers: tuple[Offer, ...]
    arrival_rate_rps: float
    taken: tuple[tuple[str, int], ...] = ()
    """Running nodes that are taken away as it begins, by offer."""


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """What a random market is drawn from; times in seconds."""

    length_s: float = 6 * HOUR_S
    mean_calm_s: float = 900.0
    """Between two changes."""
    most_nodes: int = 6
    """Of a spot pool."""
    launch_s: float = 90.0
    mean_arrival_rps: float = 2.0


def random_market(
    random: Random, kinds: Sequence[Kind], settings: MarketSettings
) -> tuple[Moment, ...]:
    """Moments in order; the first is at 0."""
    chosen = random.sample(list(kinds), k=min(len(kinds), random.randint(2, 4)))
    shape = NodeShape(1, 1.0, "gpu")
    firm = [
        Offer(
            f"od-{kind.instance_type}",
            kind.instance_type,
            shape,
            count=settings.most_nodes,
            price_per_hour=kind.price_per_hour,
            pool=f"od-{kind.instance_type}",
            launch_s=settings.launch_s,
        )
        for kind in chosen
    ]
    means = {kind.instance_type: kind.price_per_hour * random.uniform(0.3, 0.6) for kind in chosen}
    spot = [
        Offer(
            f"spot-{kind.instance_type}",
            kind.instance_type,
            shape,
            count=random.randint(0, settings.most_nodes),
            price_per_hour=means[kind.instance_type],
            pool=f"spot-{kind.instance_type}",
            spot=True,
            interruptions_per_hour=random.choice((0.02, 0.1, 0.5)),
            launch_s=settings.launch_s,
        )
        for kind in chosen
    ]
    rate = settings.mean_arrival_rps * random.uniform(0.5, 1.5)
    moments = [Moment(0.0, (*firm, *spot), rate)]
    at_s = 0.0
    while True:
        at_s += random.expovariate(1 / settings.mean_calm_s)
        if at_s >= settings.length_s:
            return tuple(moments)
        taken: list[tuple[str, int]] = []
        index = random.randrange(len(spot))
        offer = spot[index]
        change = random.random()
        if change < 0.4:
            mean = means[offer.instance_type]
            pull = 0.5 * (mean - (offer.price_per_hour or mean))
            price = (offer.price_per_hour or mean) + pull + mean * random.gauss(0.0, 0.15)
            highest = firm[index].price_per_hour or price
            spot[index] = replace(offer, price_per_hour=min(max(price, 0.1 * mean), highest))
        elif change < 0.6 and offer.count:
            away = offer.count if random.random() < 0.5 else random.randint(1, offer.count)
            taken.append((offer.offer_id, away))
            spot[index] = replace(offer, count=offer.count - away)
        elif change < 0.85:
            spot[index] = replace(offer, count=random.randint(offer.count, settings.most_nodes))
        else:
            rate = settings.mean_arrival_rps * random.uniform(0.3, 2.0)
        moments.append(Moment(at_s, (*firm, *spot), rate, tuple(taken)))
