from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.generation import ModelRef
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.replanning import Ask, ReplanSettings
from services.controller.replans import Replanning, Wishes
from services.controller.what_ifs import Answers, LikeNodes, WhatIfs
from tests.unit.controller.small_cluster import SHAPE, facts

FAST = Offer("fast", "fast", replace(SHAPE, relative_speed=9.0), count=3, price_per_hour=1.0)
CLOSED = replace(FAST, offer_id="closed", count=0)
REFUSES = replace(FAST, offer_id="refuses")


class Placement:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Replanning, tuple[LikeNodes, ...]]] = []

    async def what_ifs(self, question: Replanning, groups: Sequence[LikeNodes]) -> Answers:
        self.asked.append((question, tuple(groups)))
        return Answers((("as things are", "the plan that runs stays"),), True)


async def test_all_that_is_there_and_all_that_may_be_had_is_asked_about() -> None:
    market, placement = Market(), Placement()
    market.update([FAST, CLOSED, REFUSES])
    market.found("node-2", "fast")
    market.launch("node-9", "refuses")
    market.refused("node-9", 60.0, 100.0)

    def question(ask: Ask) -> Replanning:
        nodes = ((facts("node-1"), None), (facts("node-2"), FAST))
        model = ModelRef("m", "d")
        return Replanning(2, model, nodes, ask.candidates, (), ask.improve, Wishes())

    asking = WhatIfs(
        question,
        market=market,
        settings=ReplanSettings(candidates_an_offer=1),
        placement=placement,
        clock=lambda: 100.0,
    )
    assert (await asking.answers()).complete
    ((asked, groups),) = placement.asked
    assert asked.improve
    assert [one.name for one in asked.candidates] == ["fast#1"], "as many as a plan may name"
    assert groups == (
        LikeNodes("fast", ("node-2", "fast#1"), FAST),
        LikeNodes("closed", (), CLOSED),
        LikeNodes("refuses", (), REFUSES),
        LikeNodes("own nodes of speed 1", ("node-1",), None),
    )
