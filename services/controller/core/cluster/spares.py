"""Warm spares: nodes without a place, up and with the stages that are likeliest to be lost.

Which nodes are spares is not noted anywhere: they are the first of those that have no place, as
many as are wanted. So a restart keeps them, and whoever lost a place may become one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from math import inf

from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Seat
from services.controller.core.cluster.plan import ANY_SHAPE
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State


def wanted(state: State, settings: ClusterSettings, market: Market) -> int:
    """How many are kept: none where the plan has no stage, where nothing of it is known to be taken
    away ever, or where what runs costs more than it may."""
    if not settings.spares or not any(pipeline.seats for pipeline in state.wanted()):
        return 0
    if market.exceeds(settings.budget_per_hour) or not _is_at_risk(state, market):
        return 0
    return settings.spares


def _is_at_risk(state: State, market: Market) -> bool:
    """A node of the plan may be taken away, as far as is known; where nobody names a price there is
    nothing to weigh against it."""
    if all(offer.price_per_hour is None for offer in market.offers()):
        return True
    offers = (_offer_of(market, seat) for seat in _seats(state))
    return any(o is None or o.spot or o.interruptions_per_hour > 0 for o in offers)


def reserve(state: State, settings: ClusterSettings, market: Market) -> list[Node]:
    """The nodes without a place that are kept before others, wanted or not; those first that hold
    what is likeliest to be needed."""
    if not settings.spares:
        return []
    seatless = state.indexes.seatless()
    free = [node for node in seatless if node.stays and state.pipeline_of(node) is None]
    if not free:
        return []
    ranks = {seat.stage: rank for rank, seat in enumerate(likeliest(state, market))}
    free.sort(key=lambda node: (_rank(node, ranks), not node.present))
    return free[: settings.spares]


def _rank(node: Node, ranks: dict[HeldStage, int]) -> int:
    stage = node.loading or node.held
    return len(ranks) if stage is None else ranks.get(stage, len(ranks))


def spares(state: State, settings: ClusterSettings, market: Market) -> list[Node]:
    """The nodes that are kept, there or on their way."""
    return reserve(state, settings, market)[: wanted(state, settings, market)]


def likeliest(state: State, market: Market) -> list[Seat]:
    """A seat of each stage of the plan, the stage first whose loss is likeliest: by the hazards of
    all nodes that have it, by how many of them are spot, by how many there are."""
    risks: dict[HeldStage, tuple[float, int, int]] = {}
    seats: dict[HeldStage, Seat] = {}
    for seat in _seats(state):
        offer = _offer_of(market, seat)
        hazard, spot, count = risks.get(seat.stage, (0.0, 0, 0))
        hazard += 0.0 if offer is None else offer.interruptions_per_hour
        risks[seat.stage] = hazard, spot + (offer is not None and offer.spot), count + 1
        known = seats.setdefault(seat.stage, seat)
        if seat.shape.memory_bytes < known.shape.memory_bytes:
            seats[seat.stage] = seat

    def order(seat: Seat) -> tuple[float, int, int, str, int, int]:
        hazard, spot, count = risks[seat.stage]
        stage = seat.stage
        return -hazard, -spot, -count, stage.model.model_id, stage.layers.start, stage.layers.end

    return sorted(seats.values(), key=order)


def loads(
    state: State, settings: ClusterSettings, market: Market, now_s: float
) -> list[tuple[Node, HeldStage]]:
    """What the spares are to load. Several hold different stages before two hold the same; one that
    cannot have its own has the likeliest that it can."""
    there = [node for node in spares(state, settings, market) if node.present]
    seats = likeliest(state, market)
    open_seats = list(islice(cycle(seats), len(there)))
    idle = []
    for node in there:
        stage = node.loading or node.held
        kept = next((seat for seat in open_seats if seat.stage == stage), None)
        if kept is not None:
            open_seats.remove(kept)
        elif node.loading is None:
            idle.append(node)
    found = []
    for node in idle:
        if _is_useless(settings, node, seats):
            continue
        seat = _first(node, [*open_seats, *seats], now_s)
        if seat is None or seat.stage == node.held:
            continue
        if seat in open_seats:
            open_seats.remove(seat)
        found.append((node, seat.stage))
    return found


def useless(state: State, settings: ClusterSettings, market: Market) -> list[Node]:
    """Spares that were launched and could not load a stage of the plan, as often as they may try:
    another one may."""
    seats = likeliest(state, market)
    kept = spares(state, settings, market)
    return [n for n in kept if n.launched and n.present and _is_useless(settings, n, seats)]


def _is_useless(settings: ClusterSettings, node: Node, seats: list[Seat]) -> bool:
    return any(node.cannot_load(seat.stage, settings.load_attempts) for seat in seats)


def _first(node: Node, seats: list[Seat], now_s: float) -> Seat | None:
    """The first that suits; none while the last attempt at it is too short ago."""
    seat = next((seat for seat in seats if suits(node.shape, seat)), None)
    waits = seat is not None and seat.stage == node.refused and now_s < node.loads.retry_at_s
    return None if waits else seat


def offer_for_one(
    state: State, settings: ClusterSettings, market: Market, now_s: float
) -> Offer | None:
    """Where the next one is launched from: what suits most stages of the plan and, of that, what
    costs least with what it loses to interruptions. None where nothing suits, is open, or is within
    the budget."""
    seats = list(_seats(state))
    shut = market.shut()
    found: list[tuple[tuple[int, float, float, str], Offer]] = []
    for offer in market.offers():
        count = sum(suits(offer.shape, seat) for seat in seats)
        is_open = market.open_count(offer.offer_id) and now_s >= shut.get(offer.offer_id, -inf)
        if count and is_open and market.affords(offer.offer_id, settings.budget_per_hour):
            found.append(
                ((-count, _cost(offer), -offer.shape.relative_speed, offer.offer_id), offer)
            )
    return min(found, key=lambda one: one[0])[1] if found else None


def _cost(offer: Offer) -> float:
    """An hour of it, and of what takes its place each time that it is interrupted."""
    price = inf if offer.price_per_hour is None else offer.price_per_hour
    return price * (1 + offer.interruptions_per_hour)


def suits(shape: NodeShape, seat: Seat) -> bool:
    """A node of this shape could sit there."""
    like = seat.shape == ANY_SHAPE or shape.device_type == seat.shape.device_type
    return like and shape.memory_bytes >= seat.shape.memory_bytes


def cost_per_hour(market: Market, nodes: list[Node]) -> float | None:
    """Of these nodes; None where a price is not known."""
    offers = [market.offer(market.offer_id_of(node.node_id)) for node in nodes]
    prices = [None if offer is None else offer.price_per_hour for offer in offers]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    unpriced = all(offer.price_per_hour is None for offer in market.offers())
    return None if unpriced else sum(known)


def _seats(state: State) -> Iterator[Seat]:
    """Of the plan."""
    for pipeline in state.wanted():
        yield from pipeline.seats


def _offer_of(market: Market, seat: Seat) -> Offer | None:
    return market.offer(market.offer_id_of(seat.node_id))
