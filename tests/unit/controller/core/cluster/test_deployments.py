"""Two models in one cluster core."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import (
    AskPlan,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
)
from services.controller.core.cluster.goals import Goal, Goals
from services.controller.core.cluster.plan import Plan
from services.controller.core.model_facts import ModelFacts
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    GOAL,
    PAIR,
    PATIENT,
    SETTINGS,
    Prompt,
    Stages,
    all_of,
    beat,
    drawer,
    facts,
    load_failed,
    loaded,
    one_of,
    planned,
    ready,
    said,
)

OTHER = Goal(ModelFacts("other", "d", 8, 500, 128, "{}"))
BOTH = Goals.of(GOAL).adding(OTHER)
WHOLE = LayerRange(0, 8)
ALONE: Stages = {"node-3": WHOLE}


def both(number: int = 2, first: Stages = PAIR, second: Stages = ALONE) -> Plan:
    one = planned(first, number=number)
    other = planned(second, number=number, model=OTHER.model).renamed({"pipeline-1": "other-1"})
    return Plan(number, (*one.deployments, *other.deployments))


def serving_both(grace_s: float = 60.0) -> Prompt:
    """The first one on node-1 and node-2 in f1, the other on node-3 in f2."""
    cluster = ready(replace(PATIENT, undeploy_grace_s=grace_s))
    cluster.register(facts("node-3"), 0.1)
    actions = cluster.aim_at(BOTH, both(), 0.2)
    assert "deployments_changed" in said(actions)
    assert one_of(actions, LoadStage).model == OTHER.model
    form = one_of(loaded(cluster, "node-3", WHOLE, 0.3, model=OTHER.model), FormPipeline)
    cluster.formed(form.formation_id, 0.4)
    for node_id, formation in (("node-1", "f1"), ("node-2", "f1"), ("node-3", "f2")):
        beat(cluster, node_id, formation, 0.5)
    return cluster


def test_each_model_has_its_routes_and_limits() -> None:
    cluster = serving_both()
    routes = {route.model: route for route in cluster.routes()[1]}
    assert routes.keys() == {GOAL.model, OTHER.model}
    assert routes[GOAL.model].max_positions == 32 * 16
    assert routes[OTHER.model].max_positions == OTHER.facts.context_length
    assert [one.model for one in cluster.view.models()] == [GOAL.model, OTHER.model]
    found = cluster.view.runs_at("f2")
    assert found is not None
    assert (found.pipeline_id, found.model) == ("other-1", OTHER.model)


def test_a_plan_that_lacks_a_model_is_made_anew() -> None:
    cluster = ready(PATIENT)
    cluster.register(facts("node-3"), 0.1)
    ask = one_of(cluster.aim_at(BOTH, None, 0.2), AskPlan)
    assert (ask.number, [goal.model for goal in ask.goals]) == (2, [GOAL.model, OTHER.model])
    assert [model for model, _ in ask.running] == [GOAL.model]
    cluster.plan_failed("too small", True, 0.3)
    assert [bool(one.unusable) for one in cluster.view.models()] == [False, True]
    assert cluster.view.unusable() == ""
    assert all_of(cluster.tick(9.0), AskPlan) == []  # nothing has changed
    ask = one_of(cluster.register(facts("node-4"), 9.1), AskPlan)
    assert one_of(cluster.plan_ready(both(ask.number), 9.2), LoadStage).node_id == "node-3"


def test_goals_that_outlived_their_plan_have_it_asked_for_after_a_restart() -> None:
    cluster = ready(PATIENT)
    cluster.register(facts("node-3"), 0.1)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 10.0, 10.0, BOTH)
    ask = one_of(again.start(10.0), AskPlan)
    assert [goal.model for goal in ask.goals] == [GOAL.model, OTHER.model]
    assert {route.model for route in again.routes()[1]} == {GOAL.model}


def test_a_plan_for_what_was_undeployed_meanwhile_is_not_carried_out() -> None:
    cluster = ready(PATIENT)
    cluster.register(facts("node-3"), 0.1)
    ask = one_of(cluster.aim_at(BOTH, None, 0.2), AskPlan)
    assert all_of(cluster.aim_at(Goals.of(GOAL), None, 0.3), AskPlan) == []
    assert said(cluster.plan_ready(both(ask.number), 0.4)) == ["plan_outdated"]
    assert cluster.plan is not None
    assert cluster.plan.models == {GOAL.model}


def test_an_undeployed_model_takes_nothing_new_and_ends_what_it_has() -> None:
    cluster = serving_both()
    beat(cluster, "node-3", "f2", 1.0, has_work=True)
    actions = cluster.aim_at(BOTH.removing("other"), planned(PAIR, number=3), 1.1)
    assert all_of(actions, DrainFormation) == []
    assert {route.model for route in cluster.routes()[1]} == {GOAL.model}
    assert cluster.handing_over() == ("f2",)
    heads = {head.route.model: head.takes_new for head in cluster.view.heads(1.1)}
    assert heads == {GOAL.model: True, OTHER.model: False}
    assert beat(cluster, "node-3", "f2", 2.0, has_work=True, steps=3) == []
    assert all_of(cluster.tick(2.5), DrainFormation) == []
    beat(cluster, "node-3", "f2", 3.0, steps=4)
    assert cluster.wakes_at_s() <= 3.0 + PATIENT.heartbeat_interval_s
    drain = one_of(cluster.tick(3.0 + PATIENT.heartbeat_interval_s), DrainFormation)
    assert drain.formation_id == "f2"
    assert cluster.view.busy
    cluster.drained("f2", 0, 3.1)
    assert [view.pipeline_id for view in cluster.view.pipelines()] == ["pipeline-1"]


def test_what_an_undeployed_model_has_begun_has_its_time() -> None:
    cluster = serving_both(grace_s=5.0)
    beat(cluster, "node-3", "f2", 1.0, has_work=True)
    cluster.aim_at(BOTH.removing("other"), planned(PAIR, number=3), 1.1)
    assert all_of(cluster.tick(6.0), DrainFormation) == []
    assert one_of(cluster.tick(6.3), DrainFormation).formation_id == "f2"


def test_a_model_that_comes_back_keeps_the_pipeline_that_was_ending() -> None:
    cluster = serving_both()
    beat(cluster, "node-3", "f2", 1.0, has_work=True)
    cluster.aim_at(BOTH.removing("other"), planned(PAIR, number=3), 1.1)
    actions = cluster.aim_at(BOTH, both(4), 1.2)
    assert (all_of(actions, LoadStage), all_of(actions, DrainFormation)) == ([], [])
    assert {route.formation_id for route in cluster.routes()[1]} == {"f1", "f2"}


def test_the_last_pipeline_of_a_model_is_not_spared_for_that_another_model_serves() -> None:
    """The other model is to have node-1, too, and what follows there is yet to be launched."""
    cluster = serving_both()
    first = planned({"?1": LayerRange(0, 30)}, number=3)
    second = planned(ALONE, {"node-1": WHOLE}, number=3, model=OTHER.model)
    second = second.renamed({"pipeline-1": "other-1", "pipeline-2": "other-2"})
    plan = Plan(3, (*first.deployments, *second.deployments))
    launch = one_of(cluster.aim_at(BOTH, plan, 1.0), LaunchNode)
    assert all_of(cluster.tick(1.2), DrainFormation) == []
    load = one_of(cluster.register(facts(launch.node_id), 2.0), LoadStage)
    assert load.model == GOAL.model
    assert all_of(cluster.tick(2.1), DrainFormation) == []
    assert all_of(loaded(cluster, "node-1", WHOLE, 2.5, model=OTHER.model), DrainFormation) == []
    form = one_of(loaded(cluster, launch.node_id, LayerRange(0, 30), 3.0), FormPipeline)
    drains = all_of(cluster.formed(form.formation_id, 3.1), DrainFormation)
    assert [drain.formation_id for drain in drains] == ["f1"]


@pytest.mark.parametrize("model", ["m", "other"])
def test_why_a_model_is_unusable_is_of_its_own_pipelines(model: str) -> None:
    settings = replace(SETTINGS, initial=(), can_launch=False, expected_nodes=3)
    cluster = Prompt(settings, drawer(), 0.0, 0.0, BOTH)
    cluster.start(0.0)
    for name in ("node-1", "node-2", "node-3"):
        cluster.register(facts(name), 0.0)
    cluster.plan_ready(both(1), 0.1)
    for node_id in ("node-1", "node-2") if model == "m" else ("node-3",):
        layers = {"node-1": FRONT, "node-2": BACK}.get(node_id, WHOLE)
        asked = GOAL.model if model == "m" else OTHER.model
        load_failed(cluster, node_id, layers, 0.2, "odd head_dim", permanent=True, model=asked)
    cluster.tick(0.3)
    found = {one.model.model_id: one.unusable for one in cluster.view.models()}
    assert found == {"m": "", "other": ""} | {model: "odd head_dim"}


def test_models_that_wait_for_each_others_nodes_do_not_wait_for_ever() -> None:
    cluster = serving_both()
    swapped = both(3, first={"node-3": LayerRange(0, 30)}, second={"node-1": WHOLE})
    loads = all_of(cluster.aim_at(BOTH, swapped, 1.0), LoadStage)
    assert {load.node_id: load.model for load in loads} == {
        "node-1": OTHER.model,
        "node-3": GOAL.model,
    }
    assert all_of(loaded(cluster, "node-1", WHOLE, 1.1, model=OTHER.model), DrainFormation) == []
    drains = all_of(loaded(cluster, "node-3", LayerRange(0, 30), 1.2), DrainFormation)
    assert [drain.formation_id for drain in drains] == ["f2"]
    form = one_of(cluster.drained("f2", 0, 1.3), FormPipeline)
    drains = all_of(cluster.formed(form.formation_id, 1.4), DrainFormation)
    assert [drain.formation_id for drain in drains] == ["f1"]


def test_nodes_that_still_serve_one_model_are_none_of_another_one_but_by_the_plan() -> None:
    cluster, halves = serving_both(), {"?1": LayerRange(0, 4), "?2": LayerRange(4, 8)}
    launches = all_of(cluster.plan_ready(both(3, second=halves), 1.0), LaunchNode)
    coming = {launch.node_id for launch in launches}
    assert len(coming) == 2
    assert cluster.core.view.seated_but_of(GOAL.model) == {"node-3", *coming}
    taken = {"node-1": FRONT, "node-3": BACK}
    cluster.plan_ready(both(4, first=taken, second=halves), 1.1)
    assert cluster.core.view.seated_but_of(GOAL.model).isdisjoint(taken)


TWIN = Goal(replace(GOAL.facts, model_id="twin"))
"""Of as many layers."""


def test_a_stage_of_another_model_of_the_same_layers_is_another_stage() -> None:
    whole = LayerRange(0, 30)
    cluster = ready(PATIENT)
    cluster.register(facts("node-3"), 0.1)
    twin = planned({"node-3": whole}, model=TWIN.model).renamed({"pipeline-1": "twin-1"})
    plan = Plan(2, (*planned(PAIR).deployments, *twin.deployments))
    load = one_of(cluster.aim_at(Goals.of(GOAL).adding(TWIN), plan, 0.2), LoadStage)
    assert (load.node_id, load.model) == ("node-3", TWIN.model)
    plan = planned({"node-3": whole}, number=3)
    load = one_of(cluster.aim_at(Goals.of(GOAL), plan, 0.3), LoadStage)
    assert (load.node_id, load.model) == ("node-3", GOAL.model)
    for late in (TWIN.model, replace(GOAL.model, digest="e")):
        assert loaded(cluster, "node-3", whole, 0.4, model=late) == []
        assert load_failed(cluster, "node-3", whole, 0.4, model=late) == []
    assert said(loaded(cluster, "node-3", whole, 0.5))[0] == "stage_loaded"
