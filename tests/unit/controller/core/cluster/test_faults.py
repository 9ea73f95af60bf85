from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    FormPipeline,
    LaunchNode,
    LoadStage,
    NodeState,
    TerminateNode,
)
from services.controller.core.cluster.settings import ClusterSettings
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PAIR,
    PATIENT,
    SETTINGS,
    SHAPE,
    Prompt,
    all_of,
    beat,
    drawer,
    facts,
    load_failed,
    loaded,
    one_of,
    planned,
    ready,
)


def storm(
    cluster: Prompt, fail: Callable[[str, float], list[Action]], until_s: float
) -> list[float]:
    """Fails every node that the cluster launches; returns when it launched them."""
    launched_s, now_s = [], 0.0
    actions = cluster.start(now_s)
    while now_s < until_s:
        while launches := all_of(actions, LaunchNode):
            launched_s += [now_s] * len(launches)
            actions = [a for launch in launches for a in fail(launch.node_id, now_s)]
        now_s += 1.0
        for view in cluster.view.nodes():
            if view.incarnation and view.state is not NodeState.LOST:
                beat(cluster, view.node_id, "", now_s)
        actions = cluster.tick(now_s)
    return launched_s


HOUR_S = 3600.0


@pytest.mark.parametrize("how", ["at its start", "behind its registration", "loading", "serving"])
def test_a_node_that_fails_at_every_start_is_replaced_ever_more_seldom(how: str) -> None:
    cluster = Prompt(SETTINGS, drawer(), 0.0, 0.0)

    def fail(node_id: str, now_s: float) -> list[Action]:
        if node_id == "node-1" and how in ("loading", "serving"):
            return cluster.register(facts(node_id), now_s)
        if how != "at its start":
            cluster.register(facts(node_id), now_s)
        if how in ("loading", "serving") and not cluster.view.pipelines():
            cluster.plan_ready(planned(PAIR), now_s)
            loaded(cluster, "node-1", FRONT, now_s)
        if how == "serving":
            form = one_of(loaded(cluster, node_id, BACK, now_s), FormPipeline)
            cluster.formed(form.formation_id, now_s)
        incarnation = "" if how == "at its start" else f"i-{node_id}"
        return cluster.node_gone(node_id, incarnation, "exit status 1", now_s)

    launched_s = storm(cluster, fail, 6 * HOUR_S)
    pauses = [after - before for before, after in pairwise(launched_s)]
    pauses = [pause for pause in pauses if pause]  # nodes of the first plan come together
    assert pauses == sorted(pauses)
    assert max(pauses) >= SETTINGS.replace_max_s
    assert len(pauses) <= 6 * HOUR_S / SETTINGS.replace_max_s + 15
    fault = cluster.view.faults()[0]
    assert (fault.kind, fault.cause, fault.permanent) == ("start", "exit status 1", False)
    assert fault.failures >= len(pauses)
    assert cluster.view.unusable() == ""


def test_a_node_that_cannot_load_passingly_is_replaced_ever_more_seldom() -> None:
    cluster, loads = Prompt(SETTINGS, drawer(), 0.0, 0.0), 0
    launched, now_s, actions = 0, 0.0, cluster.start(0.0)
    while now_s < 6 * HOUR_S:
        for launch in all_of(actions, LaunchNode):
            launched += 1
            more = cluster.register(facts(launch.node_id), now_s)
            if all_of(more, AskPlan):
                more = cluster.plan_ready(planned(PAIR), now_s)
            actions = [*actions, *more]
        done, actions = actions, []
        for load in all_of(done, LoadStage):
            if load.layers == FRONT:
                actions += loaded(cluster, load.node_id, FRONT, now_s)
            else:
                loads += 1
                actions += load_failed(cluster, load.node_id, BACK, now_s)
        now_s += 1.0
        for view in cluster.view.nodes():
            if view.incarnation and view.state is not NodeState.LOST:
                beat(cluster, view.node_id, "", now_s)
        actions += cluster.tick(now_s)
    most = 6 * HOUR_S / SETTINGS.replace_max_s + 12
    assert launched <= most
    assert loads <= most + launched + SETTINGS.load_attempts
    assert {fault.cause for fault in cluster.view.faults()} == {"no weights"}


def test_what_is_to_follow_a_node_that_served_well_is_launched_ever_more_seldom() -> None:
    cluster = ready(PATIENT)
    actions = cluster.interrupt("node-2", HOUR_S, False, 20.0)
    launched_s, now_s = [], 20.0
    while now_s < 100.0:
        for launch in all_of(actions, LaunchNode):
            launched_s.append(now_s)
            actions = cluster.launch_failed(launch.node_id, "no room", now_s)
            assert all_of(actions, LaunchNode) == []
        now_s += 0.25
        actions = cluster.tick(now_s)
    pauses = [after - before for before, after in pairwise(launched_s)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= PATIENT.retry_max_s


def refused(settings: ClusterSettings = PATIENT) -> Prompt:
    """No node may ever load the back of the model."""
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    cluster.plan_ready(planned(PAIR), 0.0)
    loaded(cluster, "node-1", FRONT, 0.0)
    assert cluster.view.unusable() == ""
    load_failed(cluster, "node-2", BACK, 1.0, "no head_dim of 3", permanent=True)
    return cluster


def test_what_a_node_refuses_for_good_costs_no_other_node_and_is_said_first() -> None:
    cluster = refused()
    for now_s in (1.0, 2.0, HOUR_S, 24 * HOUR_S):
        actions = cluster.tick(now_s)
        assert (all_of(actions, LaunchNode), all_of(actions, LoadStage)) == ([], [])
        assert all_of(actions, TerminateNode) == []
    fault = cluster.view.faults()[0]
    assert (fault.kind, fault.cause, fault.node_id) == ("load", "no head_dim of 3", "node-2")
    assert (fault.permanent, fault.failures, fault.since_s) == (True, 1, 1.0)
    assert cluster.view.unusable() == "no head_dim of 3"
    version, routes = cluster.routes()
    assert (version, routes) == (1, ())  # routers are told


def test_what_one_node_refuses_for_good_another_one_may_try() -> None:
    cluster = refused()
    actions = cluster.register(facts("node-3"), 5.0)
    assert one_of(actions, LoadStage).node_id == "node-3"
    assert one_of(loaded(cluster, "node-3", BACK, 6.0), FormPipeline)
    assert cluster.view.unusable() == ""


def test_a_process_that_comes_anew_may_try_what_its_last_one_refused() -> None:
    cluster = refused()
    actions = cluster.register(facts("node-2", "i-again"), 5.0)
    assert one_of(actions, LoadStage).incarnation == "i-again"


def test_a_pipeline_that_none_can_run_leaves_the_others_their_nodes() -> None:
    settings = replace(PATIENT, initial=(SHAPE, SHAPE), pipelines=2)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    whole = LayerRange(0, 30)
    plan = planned({"node-1": whole}, {"node-2": whole})
    cluster.plan_ready(plan, 0.0)
    load_failed(cluster, "node-2", whole, 0.0, "never", permanent=True)
    form = one_of(loaded(cluster, "node-1", whole, 0.0), FormPipeline)
    cluster.formed(form.formation_id, 0.0)
    assert cluster.view.unusable() == ""
    assert [fault.pipeline_id for fault in cluster.view.faults()] == ["pipeline-2"]
    assert cluster.tick(HOUR_S) == []
    assert [route.pipeline_id for route in cluster.routes()[1]] == ["pipeline-1"]


def test_a_plan_that_cannot_be_is_asked_for_again_when_the_nodes_are_others() -> None:
    cluster = Prompt(PATIENT, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.0)
    assert one_of(cluster.register(facts("node-2"), 0.0), AskPlan)
    cluster.plan_failed("nothing fits", True, 0.0)
    assert all_of(cluster.tick(HOUR_S), AskPlan) == []
    assert (cluster.view.unusable(), cluster.view.faults()[0].kind) == ("nothing fits", "plan")
    assert one_of(cluster.register(facts("node-3"), HOUR_S), AskPlan)
