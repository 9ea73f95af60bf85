"""Placement is asked of one model after another, until one is better served otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, ShuntError, Unavailable
from services.common.generation import LayerRange
from services.controller.core.cluster.actions import FormPipeline, LaunchNode, LogEvent
from services.controller.core.cluster.goals import Aim, Goals
from services.controller.core.cluster.market import NO_CAPACITY, OVER_BUDGET, Market, Offer
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import (
    Dividing,
    NextPlan,
    Question,
    Replanning,
    Wishes,
)
from services.controller.core.cluster.replanning import Replanner, ReplanSettings
from services.controller.core.cluster.succession import Succession, SuccessionSettings, Taken
from services.controller.core.cluster.workload import Workloads, WorkloadSettings
from simulator.processes.placement import next_plan, small_judge
from tests.unit.controller.core.cluster.test_deployments import OTHER, WHOLE, both, serving_both
from tests.unit.controller.small_cluster import (
    FRONT,
    GOAL,
    PATIENT,
    SHAPE,
    Prompt,
    all_of,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
)

STAYS = NextPlan(None, 0.0, ("nothing gains enough",))
NOTHING_LEFT = FailedPrecondition("m does not fit: 0.4 GiB short", field="nodes")
BUDGET = 4.0
ALL_LAYERS = LayerRange(0, 30)
EACH = Offer("each", "small", SHAPE, count=8, price_per_hour=1.0)


class Two:
    """Two models, of which an operator has the whole planned anew."""

    def __init__(self, wishes: Wishes | None = None) -> None:
        self.cluster = serving_both()
        self.cluster.tick(1.0)
        self.market = Market()
        self.succession = Succession(
            Replanner(ReplanSettings()),
            wishes or Wishes(),
            SuccessionSettings(),
            cluster=self.cluster.core,
            market=self.market,
            workloads=Workloads(WorkloadSettings(), 0.0),
        )

    def ask(self) -> Replanning:
        self.succession.operator_asks(2.0)
        return of_one(self.succession.look(2.0).question)

    def second(self) -> Replanning:
        """The first model stays as it is."""
        return of_one(self.succession.answered(self.ask(), STAYS, 3.0).question)

    def division(self) -> Dividing:
        """The first model cannot be served within what the second leaves."""
        question = self.succession.failed(self.ask(), NOTHING_LEFT, 3.0).question
        assert isinstance(question, Dividing)
        return question


def of_one(question: Question | None) -> Replanning:
    assert isinstance(question, Replanning)
    return question


def kinds(taken: Taken) -> list[str]:
    return [event.kind for event in all_of(list(taken.actions), LogEvent)]


def test_the_next_model_is_asked_about_once_the_one_before_stays() -> None:
    two = Two()
    first = two.ask()
    assert first.goal == GOAL
    assert {node.node_id for node in first.nodes} == {"node-1", "node-2"}
    between = two.succession.answered(first, STAYS, 3.0)
    assert (between.actions, between.told) == ((), None)
    second = of_one(between.question)
    assert second.goal == OTHER
    assert {node.node_id for node in second.nodes} == {"node-3"}
    assert not two.succession.is_out(first)
    assert two.succession.look(3.0).question is None, "one at a time"
    last = two.succession.answered(second, STAYS, 4.0)
    assert kinds(last) == ["plan_kept"]
    assert last.told is not None
    assert (last.told.change, last.told.reasons) == (False, STAYS.reasons * 2)


def test_a_model_that_is_better_served_otherwise_leaves_the_others_as_they_are() -> None:
    two = Two()
    first = two.ask()
    plan = planned({"node-1": LayerRange(0, 30)}, number=first.number)
    two.cluster.register(facts("node-4"), 2.5)
    taken = two.succession.answered(first, NextPlan(plan, 0.5, ("one node does",)), 3.0)
    assert taken.question is None, "the other one is asked about with what this one leaves"
    assert kinds(taken) == ["plan_chosen"]
    adopted = adopted_by(two)
    assert adopted.models == two.cluster.core.goals.models
    other = next(one for one in adopted.deployments if one.model == OTHER.model)
    assert [stage.layers for p in other.pipelines for stage in p.stages] == [WHOLE]
    names = [pipeline.pipeline_id for _, pipeline in adopted.pipelines()]
    assert len(set(names)) == len(names) == 2


def test_what_fails_at_the_second_model_fails_for_whoever_asked() -> None:
    two = Two()
    second = two.second()
    failed = two.succession.failed(second, Unavailable("away"), 4.0)
    assert kinds(failed) == ["replan_failed"]
    assert failed.refused
    assert two.ask().goal == GOAL


def test_of_several_models_none_goes_to_sleep() -> None:
    two = Two(Wishes(nodes_min=0))
    assert two.succession.look(1e6).actions == ()
    assert two.cluster.core.view.asleep() == ()


def adopted_by(two: Two) -> Plan:
    plan = two.cluster.core.plan
    assert plan is not None
    return plan


def test_an_answer_for_models_that_are_not_served_any_more_counts_for_nothing() -> None:
    two = Two()
    first = two.ask()
    two.cluster.core.aim_at(Goals.of(GOAL), None, 2.5)
    plan = planned({"node-1": LayerRange(0, 30)}, number=first.number)
    assert two.succession.answered(first, NextPlan(plan, 0.5, ("one node does",)), 3.0) == Taken()


def test_an_answer_counts_for_nothing_where_another_plan_has_given_its_nodes_away() -> None:
    two = Two()
    first = two.ask()
    newer = replace(adopted_by(two), number=first.number)
    two.cluster.core.plan_ready(newer, 2.5)
    plan = planned({"node-3": LayerRange(0, 30)}, number=first.number)
    assert two.succession.answered(first, NextPlan(plan, 0.5, ("one node does",)), 3.0) == Taken()
    assert two.succession.look(4.0).question is not None, "the operator waits still"


# Where one model lacks what another one has


@pytest.mark.parametrize("error", [NOTHING_LEFT, InvalidArgument("no nodes", field="nodes")])
def test_a_model_that_nothing_is_left_for_has_all_asked_about_together(error: ShuntError) -> None:
    """The money, or the nodes where they come by themselves, is the other one's."""
    two = Two(Wishes(budget_per_hour=BUDGET, nodes_max=5))
    market = two.market
    market.update((EACH,))
    for number in (1, 2, 3):
        market.found(f"node-{number}", "each")
    first = two.ask()
    assert first.wishes.budget_per_hour == BUDGET - 1.0, "within what the others leave"
    taken = two.succession.failed(first, error, 3.0)
    assert (taken.actions, taken.refused) == ((), False), "an operator goes on waiting"
    division = taken.question
    assert isinstance(division, Dividing)
    assert two.succession.is_out(division)
    assert division.goals == two.cluster.core.goals.deployed
    assert division.wishes.budget_per_hour == BUDGET
    assert division.wishes.nodes_max == 5
    assert {node.node_id for node in division.nodes} == {"node-1", "node-2", "node-3"}
    assert [model for model, _ in division.running] == [GOAL.model, OTHER.model]
    assert {one.offer.offer_id for one in division.candidates} == {"each"}
    assert division.number == first.number


def test_a_division_that_is_taken_says_so() -> None:
    two = Two()
    division = two.division()
    two.cluster.register(facts("node-4"), 3.5)
    plan = both(division.number, {"node-1": LayerRange(0, 30)}, {"node-2": WHOLE})
    taken = two.succession.answered(division, NextPlan(plan, 1.0, ("m: 1 pipeline",)), 4.0)
    assert kinds(taken) == ["plan_chosen"]
    assert taken.told is not None
    assert taken.told.change
    assert adopted_by(two).why.causes == ("operator", "divided_anew")


def test_a_model_that_cannot_be_served_beside_the_others_keeps_its_seats_for_anybody() -> None:
    """The answer has no plan for it, and gives its node away."""
    two = Two()
    division = two.division()
    plan = planned({"node-1": FRONT, "node-3": LayerRange(18, 30)}, number=division.number)
    taken = two.succession.answered(division, NextPlan(plan, 1.0, ("m: 1 pipeline",)), 4.0)
    assert kinds(taken) == ["plan_chosen"]
    adopted = adopted_by(two)
    other = next(one for one in adopted.deployments if one.model == OTHER.model)
    assert [(s.node_id, s.layers) for p in other.pipelines for s in p.stages] == [("", WHOLE)]


def test_where_no_division_is_better_the_plan_stays() -> None:
    two = Two()
    kept = two.succession.answered(two.division(), STAYS, 4.0)
    assert (kinds(kept), kept.question) == (["plan_kept"], None)
    assert kept.told is not None
    assert not kept.told.change


def test_a_division_that_is_not_answered_is_the_end_of_the_question() -> None:
    two = Two()
    failed = two.succession.failed(two.division(), NOTHING_LEFT, 4.0)
    assert (kinds(failed), failed.question, failed.refused) == (["replan_failed"], None, True)
    assert two.succession.look(4.0).question is None, "until something else happens"


def test_what_passes_by_itself_is_no_reason_to_divide_anew() -> None:
    two = Two()
    assert two.succession.failed(two.ask(), Unavailable("away"), 3.0).question is None


def test_of_one_model_nothing_is_divided() -> None:
    two = Two()
    two.cluster.core.aim_at(Goals.of(GOAL), planned({"node-1": LayerRange(0, 30)}, number=3), 1.5)
    failed = two.succession.failed(two.ask(), NOTHING_LEFT, 3.0)
    assert (kinds(failed), failed.question) == (["replan_failed"], None)


def test_whom_nothing_serves_is_asked_about_first() -> None:
    """Otherwise the other one takes what is left before its turn comes."""
    two = Two()
    launch = one_of(two.cluster.node_gone("node-3", "i-node-3", "died", 1.5), LaunchNode)
    two.cluster.launch_failed(launch.node_id, OVER_BUDGET, 1.6)
    assert two.ask().goal == OTHER


def test_an_offer_that_said_no_meanwhile_is_not_named_in_the_division() -> None:
    two = Two()
    two.market.update((EACH,))
    two.market.found("node-9", "each")
    first = two.ask()
    assert first.candidates
    two.market.refused("node-9", 30.0, 2.5)
    division = two.succession.failed(first, NOTHING_LEFT, 3.0).question
    assert isinstance(division, Dividing)
    assert division.candidates == ()


def test_an_offer_that_said_no_is_named_again_once_there_is_more_of_it() -> None:
    two = Two()
    two.market.update((EACH,))
    two.market.found("node-9", "each")
    two.market.refused("node-9", 600.0, 1.5)
    first = two.ask()
    assert first.candidates == ()
    two.market.update((replace(EACH, count=EACH.count + 1),))
    two.succession.failed(first, Unavailable("away"), 3.0)
    two.succession.operator_asks(4.0)
    assert of_one(two.succession.look(4.0).question).candidates


def test_an_answer_holds_wherever_others_sit_by_now() -> None:
    """The other model's node was replaced: its plan names one that is gone."""
    two = Two()
    two.cluster.register(facts("node-4"), 1.2)
    two.cluster.core.node_gone("node-3", "i-node-3", "died", 1.5)
    two.cluster.tick(1.5)
    assert "node-3" in adopted_by(two).node_ids()
    question = two.ask()
    plan = planned({"node-1": LayerRange(0, 30)}, number=question.number)
    if question.goal == OTHER:
        question = of_one(two.succession.answered(question, STAYS, 2.5).question)
    taken = two.succession.answered(question, NextPlan(plan, 0.5, ("one node does",)), 3.0)
    assert kinds(taken) == ["plan_chosen"]
    assert two.succession.look(3.0).question is None, "it is not asked again and again"


# Another budget


def test_another_budget_counts_for_plans_and_for_what_is_launched() -> None:
    two = Two(Wishes(budget_per_hour=BUDGET))
    market = two.market
    market.update((EACH,))
    for number in (1, 2, 3):
        market.found(f"node-{number}", "each")
    two.succession.spend(2.0, 2.0)
    assert two.cluster.core.settings.budget_per_hour == 2.0
    said_now = all_of(two.cluster.tick(2.0), LogEvent)
    assert [event.attributes for event in said_now if event.kind == "budget_changed"] == [
        {"before": "0", "now": "2"}
    ]
    first = of_one(two.succession.look(2.0).question)
    assert first.wishes.budget_per_hour == 1.0, "of which the other model has a dollar"
    two.succession.spend(2.0, 2.0)
    assert two.cluster.tick(2.0) == [], "the same again is nothing new"


def test_an_answer_within_another_budget_counts_for_nothing() -> None:
    two = Two(Wishes(budget_per_hour=BUDGET))
    asked = two.ask()
    two.succession.spend(BUDGET / 2, 2.5)
    plan = planned({"node-1": LayerRange(0, 30)}, number=asked.number)
    taken = two.succession.answered(asked, NextPlan(plan, 0.5, ("it costs what there was",)), 3.0)
    assert (taken.actions, taken.told) == ((), None)
    again = of_one(two.succession.look(3.0).question)
    assert again.wishes.budget_per_hour < BUDGET
    assert again is not asked


def test_what_waited_for_money_is_ordered_when_there_is_more_of_it() -> None:
    two = Two()
    launch = one_of(two.cluster.node_gone("node-3", "i-node-3", "died", 1.5), LaunchNode)
    two.cluster.launch_failed(launch.node_id, OVER_BUDGET, 1.5)
    assert all_of(two.cluster.tick(1.6), LaunchNode) == []
    two.succession.spend(9.0, 1.7)
    assert len(all_of(two.cluster.tick(1.7), LaunchNode)) == 1


# The least nodes, by placement's own judgement


class Frugal:
    """A model that is served for its price, on node-1 and node-2 in a pipeline each."""

    def __init__(self, wishes: Wishes) -> None:
        goal = replace(GOAL, aim=Aim("throughput-per-cost"))
        settings = replace(PATIENT, first=goal, pipelines=2)
        self.cluster = cluster = Prompt(settings, drawer(), 0.0, 0.0)
        cluster.start(0.0)
        for name in ("node-1", "node-2"):
            cluster.register(facts(name), 0.0)
        cluster.plan_ready(planned({"node-1": ALL_LAYERS}, {"node-2": ALL_LAYERS}), 0.0)
        for name in ("node-1", "node-2"):
            form = one_of(loaded(cluster, name, ALL_LAYERS, 0.0), FormPipeline)
            cluster.formed(form.formation_id, 0.0)
        self.market = Market()
        self.succession = Succession(
            Replanner(ReplanSettings()),
            wishes,
            SuccessionSettings(),
            cluster=self.cluster.core,
            market=self.market,
            workloads=Workloads(WorkloadSettings(), 0.0),
        )

    def asked(self, now_s: float) -> Plan | None:
        """What becomes of the question that is due now."""
        question = of_one(self.succession.look(now_s).question)
        answer = next_plan(small_judge(), question)
        self.succession.answered(question, answer, now_s)
        return answer.plan

    def stays(self, now_s: float) -> None:
        """The question that is due now has no better answer."""
        assert self.asked(now_s) is None

    def offers_of(self, plan: Plan | None) -> list[str]:
        assert plan is not None
        return [stage.offer_id for _, p in plan.pipelines() for stage in p.stages]


def test_who_fell_below_the_least_nodes_has_so_many_once_they_are_to_be_had() -> None:
    one = Frugal(Wishes(nodes_min=3, nodes_max=4))
    launch = one_of(one.cluster.node_gone("node-2", "i-node-2", "died", 100.0), LaunchNode)
    one.cluster.launch_failed(launch.node_id, NO_CAPACITY, 100.1)
    assert one.offers_of(one.asked(100.2)) == [""], "there is node-1, and nothing else"
    one.cluster.tick(100.2)
    one.stays(200.0)
    assert one.succession.look(1000.0).question is None, "nothing has happened"
    one.market.update((EACH,))
    assert one.succession.look(1000.0).question is None, "it has to stand for a while"
    grown = one.asked(1030.0)
    assert sorted(one.offers_of(grown)) == ["", "each", "each"]


def test_who_has_the_least_nodes_asks_for_cheaper_ones_and_goes_there() -> None:
    one = Frugal(Wishes(nodes_min=2, nodes_max=4))
    dear = replace(EACH, offer_id="dear", price_per_hour=0.07)
    cheap = replace(EACH, offer_id="cheap", price_per_hour=0.30)
    one.market.update((dear, cheap))
    for name in ("node-1", "node-2"):
        one.market.found(name, "dear")
    assert one.succession.look(99.0).question is None
    one.stays(129.0)
    one.market.update((dear, replace(cheap, price_per_hour=0.03)))
    assert one.succession.look(158.0).question is None, "not so soon behind the last one"
    moved = one.offers_of(one.asked(159.0))
    assert set(moved) == {"cheap"}
    assert len(moved) >= 2
