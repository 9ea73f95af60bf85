"""Reasons become questions, and better plans are handed over; without an answer nothing changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, Unavailable
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import Market, Offer
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.replanning import Replanner, ReplanSettings
from services.controller.core.cluster.why import Why
from services.controller.event_log import EventLog
from services.controller.replans import (
    NextPlan,
    Replanning,
    Replans,
    Wishes,
)
from tests.unit.controller.small_cluster import BACK, FRONT, PATIENT, SHAPE, facts, planned, ready

FAST = Offer("fast", "fast", replace(SHAPE, relative_speed=9.0), count=3, price_per_hour=1.0)
STEADY = ReplanSettings(steady_s=5.0, cool_down_s=10.0, settle_s=1.0)


class Asked:
    """Placement, which answers what it is told to."""

    def __init__(self) -> None:
        self.questions: list[Replanning] = []
        self.answer: NextPlan | Exception = NextPlan(None, 0.0, ("nothing gains enough",))

    async def replan(self, question: Replanning) -> NextPlan:
        self.questions.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Rig:
    def __init__(self, cluster: Cluster, events: EventLog, wishes: Wishes) -> None:
        self.cluster, self.events = cluster, events
        self.market, self.placement = Market(), Asked()
        self.adopted: list[Plan] = []
        self.now_s = 100.0
        self.replans = Replans(
            Replanner(STEADY),
            wishes,
            cluster=lambda: self.cluster,
            market=self.market,
            placement=self.placement,
            adopt=self.adopted.append,
            events=events,
            clock=lambda: self.now_s,
        )

    async def at(self, now_s: float) -> int:
        """How many questions there were by then."""
        self.now_s = now_s
        await self.replans.look()
        return len(self.placement.questions)


class Kept:
    """A journal that forgets."""

    full = False

    async def write(self, items: object, *, fsync: bool = False) -> None:
        """Takes them."""


@pytest.fixture
def rig() -> Rig:
    events = EventLog(Kept(), lambda: 0.0, 100)  # type: ignore[arg-type]
    return Rig(ready(PATIENT), events, Wishes(nodes_max=4))


async def test_an_offer_that_stands_is_asked_about_once(rig: Rig) -> None:
    assert await rig.at(100.0) == 0
    rig.market.update([FAST])
    assert await rig.at(101.0) == 0
    assert await rig.at(105.9) == 0
    assert await rig.at(106.0) == 1
    (question,) = rig.placement.questions
    assert [n.node_id for n, _ in question.nodes] == ["node-1", "node-2"]
    assert [one.name for one in question.candidates] == ["fast#1", "fast#2"], "nodes_max is 4"
    assert question.improve
    (running,) = question.running
    assert [(s.node_id, s.layers) for s in running.stages] == [("node-1", FRONT), ("node-2", BACK)]
    assert await rig.at(500.0) == 1
    assert rig.adopted == []
    event = rig.events.newest("plan_kept", "")
    assert event is not None
    assert event.attributes["reason"] == "nothing gains enough"


async def test_a_better_plan_is_handed_over(rig: Rig) -> None:
    better = planned({"node-1": FRONT, "?2": BACK}, number=2)
    rig.placement.answer = NextPlan(better, 0.5, ("faster",))
    rig.market.update([FAST])
    await rig.at(101.0)
    await rig.at(106.0)
    (adopted,) = rig.adopted
    assert adopted == replace(better, why=Why(causes=("offers_changed",)))
    event = rig.events.newest("plan_chosen", "")
    assert event is not None
    assert event.attributes["gain"] == "0.500"


async def test_a_node_that_comes_is_a_reason(rig: Rig) -> None:
    await rig.at(100.0)
    rig.cluster.register(facts("node-3"), 100.0)
    assert await rig.at(100.5) == 0
    assert await rig.at(101.5) == 1
    assert len(rig.placement.questions[0].nodes) == 3


@pytest.mark.parametrize(
    ("error", "again"), [(Unavailable("away"), True), (FailedPrecondition("no room"), False)]
)
async def test_without_an_answer_the_plan_stands(rig: Rig, error: Exception, again: bool) -> None:
    rig.placement.answer = error
    rig.market.update([FAST])
    await rig.at(101.0)
    assert await rig.at(106.0) == 1
    assert await rig.at(106.5) == 1
    assert await rig.at(107.0) == 1 + again
    assert rig.adopted == []


async def test_nothing_is_asked_while_a_plan_is_carried_out(rig: Rig) -> None:
    rig.cluster.plan_ready(planned({"node-2": FRONT, "node-1": BACK}, number=2), 100.0)
    rig.market.update([FAST])
    await rig.at(101.0)
    assert await rig.at(200.0) == 0
