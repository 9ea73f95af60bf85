"""What EC2 has to offer, from what may be bought, where it is to be had, and what it costs now.

An offer is a pool (an instance type in a zone, by the zone's id, for names differ between accounts)
on one market: spot, on demand, or a capacity reservation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.controller.core.cluster.market import (
    MAX_INTERRUPTIONS_PER_HOUR,
    MAX_LAUNCH_S,
    Offer,
)
from services.controller.providers.ec2.hazards import Hazards
from services.controller.providers.ec2.table import InstanceType, Reservation, Table

SPOT = "spot"
ON_DEMAND = "on-demand"
BEST_SCORE = 10


@dataclass(frozen=True, slots=True, order=True)
class Pool:
    """What is taken away together."""

    instance_type: str
    zone_id: str

    @property
    def name(self) -> str:
        return f"{self.instance_type}/{self.zone_id}"


@dataclass(frozen=True, slots=True)
class Region:
    """What EC2 said of itself, as far as it was asked."""

    subnets: Mapping[str, str] = field(default_factory=dict)
    """A subnet of each zone that is used, by the zone's id."""
    pools: frozenset[Pool] = frozenset()
    """Which types are to be had in which zones."""
    spot_prices: Mapping[Pool, float] = field(default_factory=dict)
    scores: Mapping[str, int] = field(default_factory=dict)
    """Placement scores, 1 to 10, by the zone's id."""


@dataclass(frozen=True, slots=True)
class Ware:
    """What an offer's name stands for."""

    pool: Pool
    market: str
    """`SPOT`, `ON_DEMAND`, or a reservation's id."""

    @property
    def offer_id(self) -> str:
        return f"{self.pool.name}/{self.market}"

    @property
    def reservation_id(self) -> str:
        """Empty where it is none."""
        return "" if self.market in (SPOT, ON_DEMAND) else self.market

    @classmethod
    def of(cls, offer_id: str) -> Ware | None:
        """None for a name that is no offer's."""
        parts = offer_id.split("/")
        return cls(Pool(parts[0], parts[1]), parts[2]) if len(parts) == 3 and all(parts) else None


def offers_of(table: Table, region: Region, hazards: Hazards) -> tuple[Offer, ...]:
    """All there are, by their names; on spot only where a price is known."""
    found: list[Offer] = []
    for zone_id in region.subnets:
        for kind in table.types.values():
            pool = Pool(kind.name, zone_id)
            if pool in region.pools:
                found += _of_pool(pool, kind, region, hazards)
    found += [
        _reserved(one, table.types[one.instance_type])
        for one in table.reservations
        if one.zone_id in region.subnets
    ]
    return tuple(sorted(found, key=lambda offer: offer.offer_id))


def _of_pool(pool: Pool, kind: InstanceType, region: Region, hazards: Hazards) -> Iterator[Offer]:
    if kind.on_demand:
        yield _offer(Ware(pool, ON_DEMAND), kind, kind.price_per_hour)
    price = region.spot_prices.get(pool)
    if kind.spot and price is not None:
        hazard = hazards.per_hour(pool.name, kind.interruptions_per_hour)
        yield _offer(
            Ware(pool, SPOT),
            kind,
            price,
            hazard=min(hazard, MAX_INTERRUPTIONS_PER_HOUR),
            launch_s=expected_launch_s(kind.launch_s, region.scores.get(pool.zone_id)),
        )


def _offer(
    ware: Ware,
    kind: InstanceType,
    price_per_hour: float,
    *,
    hazard: float = 0.0,
    launch_s: float | None = None,
) -> Offer:
    return Offer(
        ware.offer_id,
        kind.name,
        kind.shape,
        count=kind.count,
        price_per_hour=price_per_hour,
        pool=ware.pool.name,
        spot=ware.market == SPOT,
        interruptions_per_hour=hazard,
        launch_s=kind.launch_s if launch_s is None else launch_s,
    )


def _reserved(one: Reservation, kind: InstanceType) -> Offer:
    ware = Ware(Pool(one.instance_type, one.zone_id), one.reservation_id)
    return Offer(
        ware.offer_id,
        kind.name,
        kind.shape,
        count=one.count,
        price_per_hour=one.price_per_hour,
        pool=ware.pool.name,
        launch_s=kind.launch_s,
    )


def expected_launch_s(launch_s: float, score: int | None) -> float:
    """As if a tenth of the score were the chance that an order is filled: a zone that scores low is
    expected to take more attempts. The score says nothing of interruptions, and refuses nothing."""
    if score is None or not 1 <= score <= BEST_SCORE:
        return launch_s
    return min(launch_s * BEST_SCORE / score, MAX_LAUNCH_S)


def as_cheap(offer: Offer, offers: tuple[Offer, ...], slack: float) -> tuple[Offer, ...]:
    """The offer, and those of its type and market that cost at most this share more: EC2 may choose
    the deepest pool among them. A reservation has no other."""
    ware = Ware.of(offer.offer_id)
    if ware is None or ware.reservation_id or offer.price_per_hour is None:
        return (offer,)
    most = offer.price_per_hour * (1 + slack)
    others = (
        one
        for one in offers
        if one.offer_id != offer.offer_id
        and (one.instance_type, one.spot) == (offer.instance_type, offer.spot)
        and one.price_per_hour is not None
        and one.price_per_hour <= most
        and (other := Ware.of(one.offer_id)) is not None
        and not other.reservation_id
    )
    return (offer, *others)
