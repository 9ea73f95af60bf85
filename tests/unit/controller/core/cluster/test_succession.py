"""Placement is asked of one model after another, until one is better served otherwise."""

from __future__ import annotations

from dataclasses import replace

from services.common.errors import Unavailable
from services.common.generation import LayerRange
from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import NextPlan, Replanning, Wishes
from services.controller.core.cluster.replanning import Replanner, ReplanSettings
from services.controller.core.cluster.succession import Succession, SuccessionSettings, Taken
from services.controller.core.cluster.workload import Workloads, WorkloadSettings
from tests.unit.controller.core.cluster.test_deployments import OTHER, WHOLE, serving_both
from tests.unit.controller.small_cluster import GOAL, all_of, facts, planned

STAYS = NextPlan(None, 0.0, ("nothing gains enough",))


class Two:
    """Two models, of which an operator has the whole planned anew."""

    def __init__(self, wishes: Wishes | None = None) -> None:
        self.cluster = serving_both()
        self.cluster.tick(1.0)
        self.succession = Succession(
            Replanner(ReplanSettings()),
            wishes or Wishes(),
            SuccessionSettings(),
            cluster=self.cluster.core,
            market=Market(),
            workloads=Workloads(WorkloadSettings(), 0.0),
        )

    def ask(self) -> Replanning:
        self.succession.operator_asks(2.0)
        question = self.succession.look(2.0).question
        assert question is not None
        return question

    def second(self) -> Replanning:
        """The first model stays as it is."""
        question = self.succession.answered(self.ask(), STAYS, 3.0).question
        assert question is not None
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
    assert between.question is not None
    assert between.question.goal == OTHER
    assert {node.node_id for node in between.question.nodes} == {"node-3"}
    assert not two.succession.is_out(first)
    assert two.succession.look(3.0).question is None, "one at a time"
    last = two.succession.answered(between.question, STAYS, 4.0)
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
    actions, told = two.succession.failed(second, Unavailable("away"), 4.0)
    assert [event.kind for event in all_of(actions, LogEvent)] == ["replan_failed"]
    assert told
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
