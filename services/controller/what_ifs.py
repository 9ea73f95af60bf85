"""What placement would answer now if a price, a node or the objective were another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.replanning import (
    Ask,
    Candidate,
    Cause,
    ReplanSettings,
    Workload,
)
from services.controller.replans import Replanning


@dataclass(frozen=True, slots=True)
class LikeNodes:
    """Nodes that are alike and cost the same: they vary together."""

    name: str
    """For people: the offer's, where there is one."""
    node_ids: tuple[str, ...]
    """Of the question."""
    offer: Offer | None
    """Where one more may come from."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What would be other, and what placement would answer."""

    answers: tuple[tuple[str, str], ...]
    complete: bool
    """All was tried."""


class Placement(Protocol):
    """Who answers."""

    async def what_ifs(self, question: Replanning, groups: Sequence[LikeNodes]) -> Answers: ...


class WhatIfs:
    """Asks for the present question, and changes nothing."""

    def __init__(
        self,
        question: Callable[[Ask], Replanning],
        *,
        market: Market,
        settings: ReplanSettings,
        placement: Placement,
        clock: Callable[[], float],
    ) -> None:
        """`question` is what placement would be asked for these candidates."""
        self._question = question
        self._market = market
        self._settings = settings
        self._placement = placement
        self._clock = clock

    async def answers(self) -> Answers:
        """Raises a ShuntError when placement does not answer."""
        offers = self._market.offers()
        candidates = tuple(one for offer in offers for one in self._open(offer))
        question = self._question(Ask((Cause.OPERATOR,), True, candidates, Workload()))
        return await self._placement.what_ifs(question, like_nodes(question, offers))

    def _open(self, offer: Offer) -> list[Candidate]:
        """Nodes of the offer that may be had; none for as long as it says no."""
        now_s = self._clock()
        if self._market.shut().get(offer.offer_id, now_s) > now_s:
            return []
        count = min(self._market.open_count(offer.offer_id), self._settings.candidates_an_offer)
        return [Candidate(f"{offer.offer_id}#{number}", offer) for number in range(1, count + 1)]


def like_nodes(question: Replanning, offers: Sequence[Offer]) -> tuple[LikeNodes, ...]:
    """The question's nodes by offer, those of none by what they are able to do; and offers that it
    has no node of."""
    by_offer: dict[str, list[str]] = {offer.offer_id: [] for offer in offers}
    own: dict[str, list[str]] = {}
    for facts, offer in question.nodes:
        if offer is not None and offer.offer_id in by_offer:
            by_offer[offer.offer_id].append(facts.node_id)
        else:
            name = f"own nodes of speed {facts.shape.relative_speed:g}"
            own.setdefault(name, []).append(facts.node_id)
    for one in question.candidates:
        by_offer[one.offer.offer_id].append(one.name)
    offered = [LikeNodes(o.offer_id, tuple(by_offer[o.offer_id]), o) for o in offers]
    return (*offered, *(LikeNodes(name, tuple(names), None) for name, names in own.items()))
