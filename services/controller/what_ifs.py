"""What placement would answer now if a price, a node or the objective were another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.question import Replanning


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
        questions: Callable[[], Sequence[Replanning]],
        *,
        market: Market,
        placement: Placement,
    ) -> None:
        """`questions` are what placement would be asked now, one a model."""
        self._questions = questions
        self._market = market
        self._placement = placement

    async def answers(self) -> Answers:
        """Raises a ShuntError when placement does not answer."""
        questions, found, complete = self._questions(), list[tuple[str, str]](), True
        for question in questions:
            groups = like_nodes(question, self._market.offers())
            answers = await self._placement.what_ifs(question, groups)
            about = f"{question.goal.model.model_id}: " if len(questions) > 1 else ""
            found += ((f"{about}{change}", answer) for change, answer in answers.answers)
            complete = complete and answers.complete
        return Answers(tuple(found), complete)


def like_nodes(question: Replanning, offers: Sequence[Offer]) -> tuple[LikeNodes, ...]:
    """The question's nodes by offer, those of none by what they are able to do; and offers that it
    has no node of."""
    by_offer: dict[str, list[str]] = {offer.offer_id: [] for offer in offers}
    own: dict[str, list[str]] = {}
    for node in question.nodes:
        if node.offer is not None and node.offer.offer_id in by_offer:
            by_offer[node.offer.offer_id].append(node.node_id)
        else:
            name = f"own nodes of speed {node.shape.relative_speed:g}"
            own.setdefault(name, []).append(node.node_id)
    for one in question.candidates:
        by_offer.setdefault(one.offer.offer_id, []).append(one.name)
    offered = [LikeNodes(o.offer_id, tuple(by_offer[o.offer_id]), o) for o in offers]
    return (*offered, *(LikeNodes(name, tuple(names), None) for name, names in own.items()))
