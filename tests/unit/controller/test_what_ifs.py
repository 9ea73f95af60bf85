from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.question import NodeAsked, Replanning, Wishes
from services.controller.core.cluster.replanning import Candidate
from services.controller.what_ifs import Answers, LikeNodes, WhatIfs
from tests.unit.controller.small_cluster import GOAL, SHAPE

FAST = Offer("fast", "fast", replace(SHAPE, relative_speed=9.0), count=3, price_per_hour=1.0)
CLOSED = replace(FAST, offer_id="closed", count=0)
GONE = replace(FAST, offer_id="gone")


class Placement:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Replanning, tuple[LikeNodes, ...]]] = []

    async def what_ifs(self, question: Replanning, groups: Sequence[LikeNodes]) -> Answers:
        self.asked.append((question, tuple(groups)))
        return Answers((("as things are", "the plan that runs stays"),), True)


async def test_what_there_is_and_what_may_be_had_varies_by_offer() -> None:
    market, placement = Market(), Placement()
    market.update([FAST, CLOSED])
    question = Replanning(
        2,
        GOAL,
        (
            NodeAsked("node-1", SHAPE),
            NodeAsked("node-2", FAST.shape, FAST),
            NodeAsked("node-3", FAST.shape, GONE),
        ),
        (Candidate("fast#1", FAST),),
        (),
        0,
        True,
        Wishes(),
    )
    asking = WhatIfs(lambda: (question,), market=market, placement=placement)
    assert (await asking.answers()).complete
    assert placement.asked == [
        (
            question,
            (
                LikeNodes("fast", ("node-2", "fast#1"), FAST),
                LikeNodes("closed", (), CLOSED),
                LikeNodes("own nodes of speed 1", ("node-1",), None),
                LikeNodes("own nodes of speed 9", ("node-3",), None),
            ),
        )
    ]
