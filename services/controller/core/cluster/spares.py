"""Warm spares: nodes without a place, up and with the stages that are likeliest to be lost.

Which nodes are spares is not noted anywhere: they are the first of those that have no place, as
many as are wanted. So a restart keeps them, and whoever lost a place may become one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from math import inf

from services.common.nodes import NodeShape
from services.controller.core.cluster.backends import agree
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Seat
from services.controller.core.cluster.plan import ANY_SHAPE
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State
from services.controller.core.cluster.stock import More, StageAtRisk, by_risk, restock


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
    """The nodes without a place, and with one that they could take, that are kept before others,
    wanted or not; those first that hold what is likeliest to be needed."""
    if not settings.spares:
        return []
    seatless = state.indexes.seatless()
    free = [node for node in seatless if node.stays and state.pipeline_of(node) is None]
    if not free:
        return []
    seats = _least_seats(state)
    free = [node for node in free if any(suits(node.shape, one) for one in chain(*seats.values()))]
    ranks = {one.stage: rank for rank, one in enumerate(at_risk(state, market))}
    free.sort(key=lambda node: (_rank(node, ranks), not node.present))
    return free[: settings.spares]


def _rank(node: Node, ranks: Mapping[HeldStage, int]) -> int:
    stages = node.stages or (() if node.loading is None else (node.loading,))
    return min((ranks.get(stage, len(ranks)) for stage in stages), default=len(ranks))


def spares(state: State, settings: ClusterSettings, market: Market) -> list[Node]:
    """The nodes that are kept, there or on their way."""
    return reserve(state, settings, market)[: wanted(state, settings, market)]


def at_risk(state: State, market: Market) -> list[StageAtRisk]:
    """The stages of the plan, each once, the stage first whose loss is likeliest: by the hazards of
    all nodes that have it, by how many of them are spot, by how many there are."""
    risks: dict[HeldStage, StageAtRisk] = {}
    for seat in _seats(state):
        offer = _offer_of(market, seat)
        known = risks.get(seat.stage, StageAtRisk(seat.stage, nodes=0))
        risks[seat.stage] = StageAtRisk(
            seat.stage,
            known.hazard + (0.0 if offer is None else offer.interruptions_per_hour),
            known.on_spot + (offer is not None and offer.spot),
            known.nodes + 1,
        )
    return by_risk(risks.values())


def loads(state: State, settings: ClusterSettings, market: Market, now_s: float) -> list[More]:
    """What the spares are to load next, one stage each; none of one whose last attempt at it is too
    short ago, or failed as often as it may while it holds nothing."""
    kept = {node.node_id for node in spares(state, settings, market) if node.present}
    there = [node for node in state.indexes.seatless() if node.node_id in kept]
    if not there:
        return []
    seats = _least_seats(state)
    able = [node for node in there if not _is_useless(settings, node, seats)]

    def fits(node: Node, stage: HeldStage) -> bool:
        return any(suits(node.shape, seat) for seat in seats[stage])

    asks = restock(able, at_risk(state, market), fits)
    return [one for one in asks if not _waits(one, now_s)]


def _waits(more: More, now_s: float) -> bool:
    return more.stage == more.node.refused and now_s < more.node.loads.retry_at_s


def _least_seats(state: State) -> dict[HeldStage, list[Seat]]:
    """Of each stage of the plan, the seat that wants the least of a node of each backend."""
    seats: dict[HeldStage, dict[str, Seat]] = {}
    for seat in _seats(state):
        least = seats.setdefault(seat.stage, {})
        known = least.setdefault(seat.shape.backend, seat)
        if seat.shape.memory_bytes < known.shape.memory_bytes:
            least[seat.shape.backend] = seat
    return {stage: list(least.values()) for stage, least in seats.items()}


def useless(state: State, settings: ClusterSettings, market: Market) -> list[Node]:
    """Spares that were launched, hold nothing, and could not load a stage of the plan, as often as
    they may try: another one may."""
    kept = [n for n in spares(state, settings, market) if n.launched and n.present]
    seats = _least_seats(state) if kept else {}
    return [node for node in kept if _is_useless(settings, node, seats)]


def is_strange(state: State, node: Node) -> bool:
    """It is there, has never had a place, and suits none: it is not what was ordered."""
    if not node.present or node.served_s is not None:
        return False
    return not any(suits(node.shape, one) for one in chain(*_least_seats(state).values()))


def _is_useless(settings: ClusterSettings, node: Node, stages: Mapping[HeldStage, object]) -> bool:
    refused = node.refused
    if node.stages or refused is None or refused not in stages:
        return False
    return node.cannot_load(refused, settings.load_attempts)


def offer_for_one(
    state: State, settings: ClusterSettings, market: Market, now_s: float
) -> Offer | None:
    """Where the next one is launched from: of the backend that has fewest spares what suits most
    stages of the plan and, of that, what costs least with what it loses to interruptions. None
    where nothing suits, is open, or is within the budget."""
    seats = list(_seats(state))
    kept = Counter(node.shape.backend for node in spares(state, settings, market))
    shut = market.shut()
    found: list[tuple[tuple[int, int, float, float, str], Offer]] = []
    for offer in market.offers():
        count = sum(suits(offer.shape, seat) for seat in seats)
        is_open = market.open_count(offer.offer_id) and now_s >= shut.get(offer.offer_id, -inf)
        if count and is_open and market.affords(offer.offer_id, settings.budget_per_hour):
            speed, backend = offer.shape.relative_speed, offer.shape.backend
            rank = (kept[backend], -count, _cost(offer), -speed, offer.offer_id)
            found.append((rank, offer))
    return min(found, key=lambda one: one[0])[1] if found else None


def _cost(offer: Offer) -> float:
    """An hour of it, and of what takes its place each time that it is interrupted."""
    price = inf if offer.price_per_hour is None else offer.price_per_hour
    return price * (1 + offer.interruptions_per_hour)


def suits(shape: NodeShape, seat: Seat) -> bool:
    """A node of this shape could sit there."""
    any_like = replace(seat.shape, backend=ANY_SHAPE.backend) == ANY_SHAPE
    like = agree(shape, seat.shape) and (any_like or shape.device_type == seat.shape.device_type)
    enough = shape.device_count >= seat.stage.tp_degree
    return like and enough and shape.memory_bytes >= seat.shape.memory_bytes


def price_per_hour(market: Market, node: Node) -> float | None:
    """None where it is not known."""
    offer = market.offer(market.offer_id_of(node.node_id))
    return None if offer is None else offer.price_per_hour


def cost_per_hour(market: Market, nodes: list[Node]) -> float | None:
    """Of these nodes; None where a price is not known."""
    prices = [price_per_hour(market, node) for node in nodes]
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
