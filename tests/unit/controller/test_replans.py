"""Reasons become questions, and better plans are handed over; without an answer nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import nan

import pytest

from services.common.demand import Demand
from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.common.generation import LayerRange
from services.controller.core.cluster.actions import Action, FormPipeline, LogEvent
from services.controller.core.cluster.budget import Budget
from services.controller.core.cluster.goals import Aim
from services.controller.core.cluster.market import OVER_BUDGET, Market, Offer
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import Dividing, NextPlan, Replanning, Wishes
from services.controller.core.cluster.replanning import Replanner, ReplanSettings
from services.controller.core.cluster.succession import Succession, SuccessionSettings
from services.controller.core.cluster.why import Why
from services.controller.core.cluster.workload import Workloads, WorkloadSettings
from services.controller.event_log import EventLog
from services.controller.replans import Replans
from services.controller.signal import Signal
from tests.unit.controller.core.cluster.test_deployments import serving_both
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    GOAL,
    PAIR,
    PATIENT,
    SHAPE,
    Prompt,
    all_of,
    facts,
    one_of,
    planned,
    ready,
    replaced,
    said,
)

FAST = Offer("fast", "fast", replace(SHAPE, relative_speed=9.0), count=3, price_per_hour=1.0)
WHOLE = LayerRange(0, 30)
STEADY = ReplanSettings(steady_s=5.0, cool_down_s=10.0, settle_s=1.0)


class Asked:
    """Placement, which answers what it is told to."""

    def __init__(self) -> None:
        self.questions: list[Replanning] = []
        self.answer: NextPlan | Exception = NextPlan(None, 0.0, ("nothing gains enough",))
        self.divisions: list[Dividing] = []
        self.division = NextPlan(None, 0.0, ("no division serves more models",))
        self.slow = asyncio.Event()
        self.slow.set()

    async def divide(self, question: Dividing) -> NextPlan:
        self.divisions.append(question)
        return self.division

    async def replan(self, question: Replanning) -> NextPlan:
        self.questions.append(question)
        await self.slow.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Rig:
    def __init__(
        self,
        cluster: Prompt,
        wishes: Wishes,
        settings: SuccessionSettings | None = None,
        steady: ReplanSettings = STEADY,
    ) -> None:
        events = EventLog(Kept(), lambda: 0.0, 100)  # type: ignore[arg-type]
        self.cluster, self.events = cluster, events
        self.market, self.placement = Market(), Asked()
        self.adopted: list[Plan] = []
        self.noted: list[Budget] = []
        self.now_s = 100.0
        self.replans = Replans(
            Succession(
                Replanner(steady),
                wishes,
                settings or SuccessionSettings(),
                cluster=cluster.core,
                market=self.market,
                workloads=Workloads(WorkloadSettings(), 100.0),
            ),
            placement=self.placement,
            submit=self.submit,
            note_budget=self.note,
            changed=Signal(),
            clock=lambda: self.now_s,
        )

    async def note(self, budget_per_hour: float) -> None:
        self.noted.append(Budget(budget_per_hour, 0.0))

    def submit(self, actions: Sequence[Action]) -> None:
        self.cluster.tick(self.now_s)
        plan = self.cluster.plan
        if plan is not None and {"plan_chosen", "fell_asleep"}.intersection(said(actions)):
            self.adopted.append(plan)
        for event in all_of(actions, LogEvent):
            self.events.add(event.kind, attributes=event.attributes)

    async def at(self, now_s: float) -> int:
        """How many questions there were by then; those that are not answered slowly are."""
        self.now_s = now_s
        self.replans.look()
        if self.placement.slow.is_set():
            await self.replans.answered()
        await asyncio.sleep(0)
        return len(self.placement.questions)

    def told(self, kind: str) -> dict[str, str] | None:
        event = self.events.newest(kind, "")
        return None if event is None else dict(event.attributes)


class Kept:
    """A journal that forgets."""

    full = False

    async def write(self, items: object, *, fsync: bool = False) -> None:
        """Takes them."""


@pytest.fixture
def rig() -> Rig:
    return Rig(ready(PATIENT), Wishes(nodes_max=4))


async def test_an_offer_that_stands_is_asked_about_once(rig: Rig) -> None:
    assert await rig.at(100.0) == 0
    rig.market.update([FAST])
    assert await rig.at(101.0) == 0
    assert await rig.at(105.9) == 0
    assert await rig.at(106.0) == 1
    (question,) = rig.placement.questions
    assert [n.node_id for n in question.nodes] == ["node-1", "node-2"]
    assert [one.name for one in question.candidates] == ["fast#1", "fast#2", "fast#3"]
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
    why = Why(causes=("offers_changed",), adopted_unix_s=106.0)
    assert adopted == replace(better, why=why)
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


async def test_no_improvement_is_asked_for_while_a_plan_is_carried_out(rig: Rig) -> None:
    rig.cluster.plan_ready(planned({"node-2": FRONT, "node-1": BACK}, number=2), 100.0)
    rig.market.update([FAST])
    await rig.at(101.0)
    assert rig.cluster.view.busy
    assert await rig.at(200.0) == 0


async def test_a_refused_launch_has_a_plan_made_without_it_at_once(rig: Rig) -> None:
    rig.market.update([replace(FAST, count=0)])
    assert await rig.at(100.0) == 0
    rig.cluster.node_gone("node-2", "i-node-2", "killed", 101.0)
    assert await rig.at(101.0) == 0, "one more of its shape is ordered first"
    rig.cluster.launch_failed("node-3", "no capacity", 101.1)
    alone = NextPlan(planned({"node-1": LayerRange(0, 30)}, number=2), 1.0, ("what is left",))
    rig.placement.answer = alone
    assert await rig.at(101.1) == 1
    (question,) = rig.placement.questions
    assert not question.improve
    assert question.running == ()
    assert [node.node_id for node in question.nodes] == ["node-1"]
    assert [held.layers for held in question.nodes[0].held] == [FRONT]
    assert rig.told("plan_chosen") is not None
    (adopted,) = rig.adopted
    assert (adopted.number, adopted.node_ids()) == (2, {"node-1"})
    assert adopted.why.causes == ("launch_refused",)


async def test_a_notice_without_a_replacement_has_a_plan_made_that_lacks_the_node(rig: Rig) -> None:
    await rig.at(100.0)
    rig.cluster.interrupt("node-2", 30.0, False, 101.0)
    assert await rig.at(101.0) == 0
    rig.cluster.launch_failed("node-3", "no capacity", 101.1)
    assert await rig.at(102.0) == 1
    (question,) = rig.placement.questions
    assert [node.node_id for node in question.nodes] == ["node-1"]
    assert question.notice_s == pytest.approx(29.0)
    assert [s.node_id for s in question.running[0].stages] == ["node-1", "node-2"]
    told = rig.told("plan_kept")
    assert told is not None
    assert told["causes"] == "node_noticed"
    rig.cluster.tick(110.0)
    rig.cluster.launch_failed("node-4", "no capacity", 110.0)
    assert await rig.at(110.0) == 1, "the same again is no news"


async def test_a_seat_that_nothing_gives_money_for_has_a_plan_made_without_it(rig: Rig) -> None:
    await rig.at(100.0)
    rig.cluster.node_gone("node-2", "i-node-2", "killed", 101.0)
    rig.cluster.launch_failed("node-3", OVER_BUDGET, 101.1)
    assert await rig.at(101.1) == 1
    assert rig.placement.questions[0].running == ()


async def test_an_answer_that_names_a_node_which_is_gone_is_asked_for_anew(rig: Rig) -> None:
    rig.placement.slow.clear()
    rig.market.update([FAST])
    await rig.at(101.0)
    assert await rig.at(106.0) == 1
    rig.placement.answer = NextPlan(planned(PAIR, number=2), 0.5, ("faster",))
    rig.cluster.node_gone("node-2", "i-node-2", "killed", 106.1)
    rig.placement.slow.set()
    await rig.replans.answered()
    assert rig.adopted == []
    assert rig.told("plan_chosen") is None


async def test_an_operator_is_told_what_came_of_the_question(rig: Rig) -> None:
    rig.placement.answer = NextPlan(planned({"node-1": WHOLE}, number=2), 0.25, ("better",))
    asked = asyncio.create_task(rig.replans.now())
    await asyncio.sleep(0)
    assert await rig.at(100.0) == 1
    told = await asked
    assert (told.change, told.number, told.gain, told.reasons) == (True, 2, 0.25, ("better",))
    rig.placement.answer = Unavailable("away")
    asked = asyncio.create_task(rig.replans.now())
    await asyncio.sleep(0)
    await rig.at(101.0)
    with pytest.raises(Unavailable, match="away"):
        await asked
    assert await rig.at(200.0) == 2, "whoever asked may ask again"


async def test_an_operator_asks_within_another_budget(rig: Rig) -> None:
    asked = asyncio.create_task(rig.replans.now(2.5))
    await asyncio.sleep(0)
    await rig.at(101.0)
    assert not (await asked).change
    assert rig.noted == [Budget(2.5, 0.0)], "durable before it counts"
    assert rig.placement.questions[-1].wishes.budget_per_hour == 2.5
    with pytest.raises(InvalidArgument):
        await rig.replans.now(nan)
    assert rig.cluster.core.settings.budget_per_hour == 2.5


async def test_whom_nothing_is_left_for_has_all_divided_anew() -> None:
    rig = Rig(serving_both(), Wishes())
    rig.placement.answer = FailedPrecondition("m does not fit", field="nodes")
    asked = asyncio.create_task(rig.replans.now())
    await asyncio.sleep(0)
    await rig.at(101.0)
    told = await asked
    assert (told.change, told.reasons) == (False, ("no division serves more models",))
    assert (len(rig.placement.questions), len(rig.placement.divisions)) == (1, 1)
    assert rig.told("plan_kept") is not None
    assert rig.told("replan_failed") is None


async def test_an_operator_may_ask_where_nobody_else_does() -> None:
    rig = Rig(ready(PATIENT), Wishes(), SuccessionSettings(automatic=False))
    rig.market.update([FAST])
    await rig.at(101.0)
    assert await rig.at(500.0) == 0
    asked = asyncio.create_task(rig.replans.now())
    await asyncio.sleep(0)
    await rig.at(501.0)
    assert not (await asked).change
    assert len(rig.placement.questions) == 1


async def test_the_workload_that_routers_tell_is_asked_about() -> None:
    steady = replace(STEADY, measured_s=5.0)
    cheap = replace(PATIENT, first=replace(GOAL, aim=Aim("throughput-per-cost")))
    rig = Rig(ready(cheap), Wishes(), steady=steady)
    for second in range(0, 11, 2):
        rig.now_s = 100.0 + second
        rig.replans.reported("r", "a", float(second), {"m": Demand(second, second * 50)})
    assert await rig.at(111.0) == 0
    assert await rig.at(112.1) == 1
    workload = rig.placement.questions[0].workload
    assert workload is not None
    assert (workload.arrival_rate_rps, workload.input_tokens) == pytest.approx((1.0, 50.0))
    told = rig.told("plan_kept")
    assert told is not None
    assert told["causes"] == "workload_changed"


async def test_a_mesh_at_rest_without_prices_asks_nothing(rig: Rig) -> None:
    rig.market.update([replace(FAST, price_per_hour=None)])
    for minute in range(200):
        rig.now_s = 100.0 + 60 * minute
        rig.replans.reported("r", "a", 60.0 * minute, {})
        assert await rig.at(rig.now_s) == 0


async def test_a_model_that_nobody_asks_for_sleeps_and_wakes_with_the_first_request() -> None:
    rig = Rig(ready(PATIENT), Wishes(nodes_min=0), SuccessionSettings(sleep_s=30.0))
    rig.replans.reported("r", "a", 0.0, {"m": Demand(open=1)})
    assert await rig.at(110.0) == 0
    rig.now_s = 112.0
    rig.replans.reported("r", "a", 12.0, {"m": Demand(1, 5, 1, 5)})
    assert await rig.at(141.0) == 0
    assert rig.adopted == []
    await rig.at(142.0)
    (asleep,) = rig.adopted
    assert asleep.deployments[0].pipelines == ()
    assert rig.cluster.view.asleep() == (GOAL.model,)
    assert rig.told("fell_asleep") is not None
    assert await rig.at(1000.0) == 0
    rig.placement.answer = NextPlan(planned(PAIR, number=3), 1.0, ("all",))
    rig.now_s = 1001.0
    rig.replans.reported("r", "a", 901.0, {"m": Demand(1, 5, 1, 5, open=1)})
    assert await rig.at(1001.0) == 1
    assert rig.cluster.view.asleep() == ()
    told = rig.told("plan_chosen")
    assert told is not None
    assert told["causes"] == "asked_for"


async def test_a_model_that_loads_for_long_does_not_sleep_before_anybody_could_ask() -> None:
    rig = Rig(ready(PATIENT), Wishes(nodes_min=0), SuccessionSettings(sleep_s=30.0))
    rig.cluster.node_gone("node-2", "i-node-2", "killed", 101.0)
    for second in range(0, 200, 10):
        await rig.at(101.0 + second)
    assert rig.cluster.view.busy
    form = one_of(replaced(rig.cluster, 295.0), FormPipeline)
    rig.cluster.formed(form.formation_id, 295.0)
    assert not rig.cluster.view.busy
    await rig.at(320.9)
    assert rig.adopted == []
    await rig.at(321.0)
    assert rig.cluster.view.asleep() == (GOAL.model,)


async def test_a_model_that_may_have_no_node_is_kept_awake_by_whoever_reads_an_answer() -> None:
    rig = Rig(ready(PATIENT), Wishes(nodes_min=0), SuccessionSettings(sleep_s=30.0))
    for second in range(0, 200, 10):
        rig.now_s = 100.0 + second
        rig.replans.reported("r", "a", float(second), {"m": Demand(1, open=1)})
        await rig.at(rig.now_s)
    assert rig.adopted == []
