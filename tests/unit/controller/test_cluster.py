from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

import pytest

from services.common.errors import NotFound, StaleEpoch
from services.common.generation import LayerRange, ModelRef
from services.controller.actions import (
    Action,
    AskPlan,
    Beat,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    LogEvent,
    NodeFacts,
    NodeShape,
    NodeState,
    PersistCluster,
    PipelineState,
    PlannedPipeline,
    PlannedStage,
    RoutesChanged,
    TerminateNode,
)
from services.controller.cluster import Cluster
from services.controller.cluster_settings import ClusterSettings

SHAPE = NodeShape(1 << 30, 1.0)
SETTINGS = ClusterSettings(
    ModelRef("m", "d"), (SHAPE, SHAPE), expected_nodes=2, pipelines=1, node_lost_s=1.0
)
FRONT, BACK = LayerRange(0, 18), LayerRange(18, 30)
A = TypeVar("A", bound=Action)


def drawer() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"f{next(numbers)}"


def facts(node_id: str, incarnation: str = "") -> NodeFacts:
    name = incarnation or f"i-{node_id}"
    return NodeFacts(node_id, name, f"{name}:1", 7, SHAPE)


def all_of(actions: Sequence[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def one_of(actions: Sequence[Action], kind: type[A]) -> A:
    (action,) = all_of(actions, kind)
    return action


def said(actions: Sequence[Action]) -> list[str]:
    return [event.kind for event in all_of(actions, LogEvent)]


def beat(cluster: Cluster, node_id: str, formation: str, now_s: float, **more: object):
    return cluster.heartbeat(
        Beat(node_id, f"i-{node_id}", formation, **more),  # type: ignore[arg-type]
        now_s,
    )


def ready(settings: ClusterSettings = SETTINGS) -> Cluster:
    """One pipeline of node-1 and node-2, ready at 0 s in formation f1."""
    cluster = Cluster(settings, drawer(), 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.0)
    ask = one_of(cluster.register(facts("node-2"), 0.0), AskPlan)
    assert [node.node_id for node in ask.nodes] == ["node-1", "node-2"]
    stages = (PlannedStage("node-1", FRONT), PlannedStage("node-2", BACK))
    loads = all_of(cluster.plan_ready((PlannedPipeline(stages, 50.0),), 0.0), LoadStage)
    assert [(load.node_id, load.layers) for load in loads] == [("node-1", FRONT), ("node-2", BACK)]
    assert all_of(cluster.load_done("node-1", "i-node-1", FRONT, 64, 0.0), FormPipeline) == []
    form = one_of(cluster.load_done("node-2", "i-node-2", BACK, 32, 0.0), FormPipeline)
    assert ([m.node_id for m in form.members], form.kv_blocks) == (["node-1", "node-2"], 32)
    assert one_of(cluster.formed(form.formation_id, 0.0), RoutesChanged).version == 1
    return cluster


def replaced(cluster: Cluster, now_s: float, layers: LayerRange = BACK) -> list[Action]:
    """node-3 comes and loads."""
    load = one_of(cluster.register(facts("node-3"), now_s), LoadStage)
    assert load.layers == layers
    return cluster.load_done("node-3", "i-node-3", layers, 64, now_s)


def test_nothing_is_launched_twice_and_the_plan_waits_for_nodes() -> None:
    cluster = Cluster(SETTINGS, drawer(), 0.0)
    launches = all_of(cluster.start(0.0), LaunchNode)
    assert [launch.node_id for launch in launches] == ["node-1", "node-2"]
    assert all_of(cluster.register(facts("node-1"), 0.0), AskPlan) == []
    assert len(all_of(cluster.tick(SETTINGS.settle_s), AskPlan)) == 1
    assert all_of(cluster.tick(SETTINGS.settle_s + 1), AskPlan) == []


def test_a_failed_plan_is_asked_for_again() -> None:
    cluster = Cluster(SETTINGS, drawer(), 0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    cluster.plan_failed("away", 0.0)
    assert all_of(beat(cluster, "node-1", "", 0.4), AskPlan) == []
    assert len(all_of(beat(cluster, "node-1", "", 0.6), AskPlan)) == 1


def test_a_ready_pipeline_has_a_route() -> None:
    cluster = ready()
    _, (route,) = cluster.routes()
    assert (route.formation_id, route.incarnation, route.max_positions) == ("f1", "i-node-1", 512)
    assert cluster.heads()[0].takes_new
    assert cluster.pipeline_of("f1") == "pipeline-1"
    assert cluster.pipelines_view()[0].state is PipelineState.READY
    assert {view.state for view in cluster.nodes_view()} == {NodeState.READY}


def test_a_failed_load_or_form_is_tried_again() -> None:
    cluster = Cluster(SETTINGS, drawer(), 0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    stages = (PlannedStage("node-1", FRONT), PlannedStage("node-2", BACK))
    cluster.plan_ready((PlannedPipeline(stages, 50.0),), 0.0)
    cluster.load_done("node-1", "i-node-1", FRONT, 64, 0.0)
    assert said(cluster.load_failed("node-2", "i-node-2", "slow", 0.0)) == ["load_failed"]
    assert one_of(cluster.tick(0.5), LoadStage).node_id == "node-2"
    assert one_of(cluster.load_done("node-2", "i-node-2", BACK, 64, 0.6), FormPipeline)
    actions = cluster.form_failed("f1", "no", 0.6)
    assert one_of(actions, DissolveFormation).formation_id == "f1"
    beat(cluster, "node-1", "", 0.9)
    beat(cluster, "node-2", "", 0.9)
    assert one_of(cluster.tick(1.2), FormPipeline).formation_id == "f2"


def test_a_killed_node_ends_its_formation_and_is_replaced_in_the_same_shape() -> None:
    cluster = ready()
    actions = cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    dissolve = one_of(actions, DissolveFormation)
    assert [member.node_id for member in dissolve.members] == ["node-1"]
    assert one_of(actions, LaunchNode) == LaunchNode("node-3", SHAPE)
    assert one_of(actions, RoutesChanged)
    assert cluster.routes()[1] == ()
    assert cluster.node_gone("node-2", "i-node-2", "exit", 1.0) == []
    form = one_of(replaced(cluster, 2.0), FormPipeline)
    assert [member.node_id for member in form.members] == ["node-1", "node-3"]
    ready_event = all_of(cluster.formed("f2", 2.5), LogEvent)[0]
    assert ready_event.attributes["down_s"] == "1.500"


def test_silence_loses_a_node() -> None:
    cluster = ready()
    beat(cluster, "node-1", "f1", 0.9)
    assert said(cluster.tick(0.9)) == []
    assert said(cluster.tick(1.0))[0] == "node_lost"
    with pytest.raises(NotFound):
        beat(cluster, "node-2", "f1", 1.1)


def test_a_lost_node_that_returns_takes_its_stage_before_the_new_one_is_there() -> None:
    cluster = ready()
    cluster.node_gone("node-2", "i-node-2", "silence", 1.0)
    actions = cluster.register(facts("node-2"), 1.5)
    assert "node_returned" in said(actions)
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-1", "node-2"]


def test_a_new_process_of_a_node_replaces_the_old_one() -> None:
    cluster = ready()
    actions = cluster.register(facts("node-2", "i-new"), 1.0)
    assert one_of(actions, DissolveFormation)
    assert one_of(actions, LoadStage).incarnation == "i-new"
    with pytest.raises(StaleEpoch):
        cluster.register(facts("node-2"), 1.1)


def test_two_strange_beats_or_a_named_loss_end_a_formation() -> None:
    cluster = ready()
    assert all_of(beat(cluster, "node-1", "", 0.1), DissolveFormation) == []
    beat(cluster, "node-1", "f1", 0.2)
    assert all_of(beat(cluster, "node-1", "", 0.3), DissolveFormation) == []
    again = beat(cluster, "node-1", "", 0.4)
    assert one_of(again, DissolveFormation).formation_id == "f1"
    assert one_of(again, FormPipeline).formation_id == "f2"
    cluster = ready()
    named = beat(cluster, "node-1", "", 0.1, lost_node_ids=("node-2",))
    assert one_of(named, DissolveFormation)


def test_a_drain_loads_the_replacement_shows_tokens_and_then_hands_over() -> None:
    cluster = ready()
    assert one_of(cluster.interrupt("node-2", 20.0, False, 1.0), LaunchNode).node_id == "node-3"
    assert cluster.interrupt("node-2", 20.0, False, 1.1) == []
    assert cluster.pipelines_view()[0].state is PipelineState.DRAINING
    beat(cluster, "node-1", "f1", 2.0)
    beat(cluster, "node-2", "f1", 2.0)
    assert "replacement_ready" in said(replaced(cluster, 2.0))
    assert len(cluster.routes()[1]) == 1
    assert all_of(beat(cluster, "node-1", "f1", 2.1, sampled_tokens=10), DrainFormation) == []
    actions = beat(cluster, "node-1", "f1", 2.3, sampled_tokens=15)
    assert one_of(actions, DrainFormation).head.node_id == "node-1"
    event = all_of(actions, LogEvent)[0]
    assert event.attributes["tokens_since_replacement_ready"] == "5"
    assert cluster.routes()[1] == ()
    assert not cluster.heads()[0].takes_new
    done = cluster.drained("f1", 3, 2.4)
    assert one_of(done, TerminateNode) == TerminateNode("node-2")
    assert [m.node_id for m in one_of(done, FormPipeline).members] == ["node-1", "node-3"]
    assert done.index(one_of(done, DissolveFormation)) < done.index(one_of(done, FormPipeline))
    assert cluster.drained("f1", 3, 2.5) == []


def test_a_hand_over_does_not_wait_for_beats_for_ever() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 1.0)
    replaced(cluster, 1.0)
    beat(cluster, "node-1", "f1", 1.9)
    beat(cluster, "node-2", "f1", 1.9)
    beat(cluster, "node-3", "", 1.9)
    assert one_of(cluster.tick(2.0), DrainFormation)


def test_a_failed_drain_hands_over_all_the_same() -> None:
    cluster = ready()
    cluster.interrupt("node-1", 20.0, False, 0.5)
    replaced(cluster, 0.5, FRONT)
    beat(cluster, "node-1", "f1", 0.6)
    beat(cluster, "node-1", "f1", 0.7)
    actions = cluster.drain_failed("f1", "silent", 0.8)
    assert "drain_failed" in said(actions)
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-3", "node-2"]


def test_a_notice_without_a_kill_or_a_replacement_lapses() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 2.0, False, 0.0)
    for now_s in (0.9, 1.8):
        beat(cluster, "node-1", "f1", now_s)
        beat(cluster, "node-2", "f1", now_s)
    assert said(cluster.tick(2.0)) == ["undrained"]
    assert cluster.pipelines_view()[0].state is PipelineState.READY
    assert all_of(replaced_idle(cluster), LoadStage) == []


def replaced_idle(cluster: Cluster) -> list[Action]:
    """The replacement comes too late to be one."""
    return cluster.register(facts("node-3"), 2.1)


def test_an_early_kill_gives_the_stage_to_the_replacement() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    actions = cluster.node_gone("node-2", "i-node-2", "exit", 0.6)
    assert all_of(actions, LaunchNode) == []
    assert one_of(replaced(cluster, 1.0), FormPipeline)


def test_a_kill_is_ordered_from_the_provider() -> None:
    cluster = ready()
    assert one_of(cluster.interrupt("node-2", 0.0, True, 1.0), TerminateNode).kill
    with pytest.raises(NotFound):
        cluster.interrupt("nobody", 0.0, True, 1.0)


def test_a_launch_that_fails_or_never_registers_is_tried_again() -> None:
    cluster = ready()
    cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert "node_lost" in said(cluster.launch_failed("node-3", "no room", 0.1))
    assert all_of(cluster.tick(0.5), LaunchNode) == []
    launched = one_of(beat(cluster, "node-1", "", 0.7), LaunchNode)
    assert launched.node_id == "node-4"
    later_s = 0.7 + SETTINGS.launch_timeout_s
    beat(cluster, "node-1", "", later_s)
    assert TerminateNode("node-4", kill=True) in cluster.tick(later_s)


def test_without_a_provider_a_vacant_stage_waits_for_a_node() -> None:
    settings = ClusterSettings(SETTINGS.model, (), expected_nodes=2, pipelines=1, can_launch=False)
    cluster = ready(settings)
    actions = cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert all_of(actions, LaunchNode) == []
    assert cluster.pipelines_view()[0].state is PipelineState.LOST
    assert one_of(replaced(cluster, 1.0), FormPipeline)


def test_a_lost_node_is_shown_for_a_while() -> None:
    cluster = ready()
    cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert NodeState.LOST in {view.state for view in cluster.nodes_view()}
    beat(cluster, "node-1", "", SETTINGS.lost_kept_s)
    cluster.tick(SETTINGS.lost_kept_s)
    assert "node-2" not in {view.node_id for view in cluster.nodes_view()}


def test_a_restarted_controller_goes_on_with_the_cluster_it_had() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    snapshot = all_of(cluster.register(facts("node-3"), 0.6), PersistCluster)[-1].snapshot
    again = Cluster.recover(SETTINGS, drawer(), snapshot, 100.0)
    again.start(100.0)
    assert [route.formation_id for route in again.routes()[1]] == ["f1"]
    assert not again.heads()[0].takes_new
    assert said(again.tick(102.9)) == []
    for node_id in ("node-1", "node-2"):
        beat(again, node_id, "f1", 102.9)
    assert again.heads()[0].takes_new
    states = {view.node_id: view.state for view in again.nodes_view()}
    assert states["node-2"] is NodeState.DRAINING


def test_a_hand_over_cut_short_by_a_restart_forms_anew() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    replaced(cluster, 0.5)
    beat(cluster, "node-1", "f1", 0.6)
    snapshot = one_of(beat(cluster, "node-1", "f1", 0.7), PersistCluster).snapshot
    again = Cluster.recover(SETTINGS, lambda: "f9", snapshot, 100.0)
    actions = again.start(100.0)
    assert one_of(actions, DissolveFormation).formation_id == "f1"
    assert one_of(actions, FormPipeline).formation_id == "f9"
