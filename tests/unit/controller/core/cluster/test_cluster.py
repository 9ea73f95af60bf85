from dataclasses import replace

import pytest

from services.common.errors import NotFound, StaleEpoch
from services.common.nodes import NodeShape
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    Loaded,
    LoadStage,
    LogEvent,
    NodeState,
    PipelineState,
    RoutesChanged,
    TerminateNode,
)
from services.controller.core.cluster.market import NO_CAPACITY, Offer
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    GOAL,
    PAIR,
    PATIENT,
    SETTINGS,
    SHAPE,
    Prompt,
    all_of,
    asked,
    beat,
    drawer,
    facts,
    load_failed,
    loaded,
    one_of,
    planned,
    ready,
    replaced,
    said,
)


def test_nothing_is_launched_twice_and_the_plan_waits_for_nodes() -> None:
    cluster = Prompt(SETTINGS, drawer(), 0.0, 0.0)
    first = cluster.start(0.0)
    launches = all_of(first, LaunchNode)
    assert [launch.node_id for launch in launches] == ["node-1", "node-2"]
    assert said(first) == ["node_launched", "node_launched"]
    assert all_of(cluster.register(facts("node-1"), 0.0), AskPlan) == []
    beat(cluster, "node-1", "", SETTINGS.settle_s)
    assert all_of(cluster.tick(SETTINGS.settle_s), AskPlan) == []
    late_s = SETTINGS.launch_timeout_s
    beat(cluster, "node-1", "", late_s)
    assert [node.node_id for node in one_of(cluster.tick(late_s), AskPlan).nodes] == ["node-1"]
    assert all_of(cluster.tick(late_s + 0.1), AskPlan) == []


@pytest.mark.parametrize("how", ["no room", "exit"])
def test_a_first_launch_that_fails_is_tried_again_in_the_same_shape(how: str) -> None:
    small, big = NodeShape(1 << 30, 1.0), NodeShape(1 << 40, 2.0)
    cluster = Prompt(replace(SETTINGS, initial=(small, big)), drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.1)
    if how == "exit":
        cluster.node_gone("node-2", "", how, 0.1)
    else:
        cluster.launch_failed("node-2", how, 0.1)
    beat(cluster, "node-1", "", 0.5)
    assert all_of(cluster.tick(0.5), LaunchNode) == []
    assert one_of(cluster.tick(0.6), LaunchNode) == LaunchNode("node-3", big)
    assert one_of(cluster.register(facts("node-3"), 0.7), AskPlan)


def test_a_stage_for_an_offer_is_launched_from_it() -> None:
    cluster = ready()
    stages = (
        PlannedStage(FRONT, 1, SHAPE, "node-1"),
        PlannedStage(BACK, 1, SHAPE, offer_id="spot"),
    )
    pipelines = (PlannedPipeline("pipeline-1", stages, 50.0),)
    plan = Plan(2, (Deployment(GOAL.model, THROUGHPUT, pipelines),))
    launch = one_of(cluster.plan_ready(plan, 1.0), LaunchNode)
    assert (launch.shape, launch.offer_id) == (SHAPE, "spot")


def test_a_launch_refused_for_want_of_capacity_is_tried_when_offers_change() -> None:
    cluster = ready(PATIENT)
    one_of(cluster.node_gone("node-2", "i-node-2", "exit", 1.0), LaunchNode)
    now_s = 1.0
    for number in range(3, 9):  # the pauses grow
        cluster.launch_failed(f"node-{number}", NO_CAPACITY, now_s)
        now_s += 40.0
        one_of(cluster.tick(now_s), LaunchNode)
    cluster.launch_failed("node-9", NO_CAPACITY, now_s)
    assert all_of(cluster.tick(now_s + 1.0), LaunchNode) == []
    one_of(cluster.offers_changed(now_s + 1.0), LaunchNode)
    cluster.launch_failed("node-10", "exit status 2", now_s + 1.0)
    assert all_of(cluster.offers_changed(now_s + 1.1), LaunchNode) == []


def test_the_pause_before_a_launch_doubles_up_to_a_limit() -> None:
    cluster = Prompt(replace(SETTINGS, initial=(SHAPE,)), drawer(), 0.0, 0.0)
    launch = one_of(cluster.start(0.0), LaunchNode)
    now_s, pauses = 0.0, []
    while len(pauses) < 9:
        cluster.launch_failed(launch.node_id, "no room", now_s)
        failed_s = now_s
        while not (launches := all_of(cluster.tick(now_s), LaunchNode)):
            now_s += 0.25
        (launch,) = launches
        pauses.append(now_s - failed_s)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_failed_plan_is_asked_for_again() -> None:
    cluster = Prompt(SETTINGS, drawer(), 0.0, 0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    cluster.plan_failed("away", False, 0.0)
    assert all_of(cluster.tick(0.4), AskPlan) == []
    assert beat(cluster, "node-1", "", 0.6) == []
    assert len(all_of(cluster.tick(0.6), AskPlan)) == 1


def test_a_ready_pipeline_has_a_route() -> None:
    cluster = ready()
    _, (route,) = cluster.routes()
    assert (route.formation_id, route.incarnation, route.max_positions) == ("f1", "i-node-1", 512)
    assert cluster.view.heads(0.0)[0].takes_new
    assert cluster.view.pipeline_of("f1") == "pipeline-1"
    assert cluster.view.pipelines()[0].state is PipelineState.READY
    assert {view.state for view in cluster.view.nodes()} == {NodeState.READY}


def test_a_failed_load_or_form_is_tried_again() -> None:
    cluster = Prompt(SETTINGS, drawer(), 0.0, 0.0)
    cluster.register(facts("node-1"), 0.0)
    cluster.register(facts("node-2"), 0.0)
    cluster.plan_ready(planned(PAIR), 0.0)
    loaded(cluster, "node-1", FRONT, 0.0)
    assert said(load_failed(cluster, "node-2", BACK, 0.0, "slow")) == ["load_failed"]
    assert one_of(cluster.tick(0.5), LoadStage).node_id == "node-2"
    assert one_of(loaded(cluster, "node-2", BACK, 0.6), FormPipeline)
    actions = cluster.form_failed("f1", "no", 0.6)
    assert one_of(actions, DissolveFormation).formation_id == "f1"
    beat(cluster, "node-1", "", 0.9)
    beat(cluster, "node-2", "", 0.9)
    assert one_of(cluster.tick(1.2), FormPipeline).formation_id == "f2"


def failing(cluster: Prompt, node_id: str, now_s: float) -> tuple[list[float], list[Action]]:
    """Fails every load of a node until it is given up; the pauses between them, and what the last
    one brings about."""
    pauses = []
    for _ in range(SETTINGS.load_attempts - 1):
        actions = load_failed(cluster, node_id, BACK, now_s)
        assert said(actions) == ["load_failed"]
        failed_s = now_s
        while not all_of(cluster.tick(now_s), LoadStage):
            now_s += 0.25
        pauses.append(now_s - failed_s)
    return pauses, load_failed(cluster, node_id, BACK, now_s)


def test_a_node_that_cannot_load_is_replaced_and_ended() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    cluster.register(facts("node-3"), 1.0)
    pauses, actions = failing(cluster, "node-3", 1.0)
    assert pauses == [0.5, 1, 2]
    assert one_of(actions, LaunchNode) == LaunchNode("node-4", SHAPE)
    assert one_of(actions, TerminateNode) == TerminateNode("node-3")
    assert all_of(cluster.tick(10.0), LoadStage) == []
    assert one_of(cluster.register(facts("node-4"), 10.0), LoadStage).node_id == "node-4"
    actions = load_failed(cluster, "node-4", BACK, 10.0)
    assert one_of(actions, LaunchNode).node_id == "node-5", "one attempt is enough"
    cluster.launch_failed("node-5", "no room", 13.6)
    assert all_of(cluster.tick(17.5), LaunchNode) == []
    assert one_of(cluster.tick(17.6), LaunchNode).node_id == "node-6"


def test_a_spare_that_cannot_load_is_replaced_too() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 600.0, False, 1.0)
    cluster.register(facts("node-3"), 1.0)
    _, actions = failing(cluster, "node-3", 1.0)
    assert one_of(actions, TerminateNode) == TerminateNode("node-3")
    cluster.register(facts("node-4"), 5.0)
    assert "replacement_ready" in said(loaded(cluster, "node-4", BACK, 6.0))


def test_a_node_that_is_less_than_was_ordered_and_cannot_load_for_good_is_replaced() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    less = replace(facts("node-3"), shape=NodeShape(1, 1.0))
    cluster.register(less, 1.0)
    failed = load_failed(cluster, "node-3", BACK, 1.0, "no room", permanent=True)
    actions = [*failed, *cluster.tick(2.0)]
    assert one_of(actions, LaunchNode) == LaunchNode("node-4", SHAPE)
    assert one_of(actions, TerminateNode) == TerminateNode("node-3")
    cluster.register(facts("node-4"), 3.0)
    load_failed(cluster, "node-4", BACK, 3.0, "no room", permanent=True)
    assert all_of(cluster.tick(100.0), LaunchNode) == [], "what was ordered would say the same"


@pytest.mark.parametrize(("price", "launches"), [(None, 0), (1.0, 1)])
def test_one_that_is_less_is_all_there_is_where_nobody_names_a_price(
    price: float | None, launches: int
) -> None:
    cluster = ready(PATIENT)
    cluster.market.update([Offer("any", "any", SHAPE, count=9, price_per_hour=price)])
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    cluster.bought("node-3", "any")
    cluster.register(replace(facts("node-3"), shape=NodeShape(1, 1.0)), 1.0)
    failed = load_failed(cluster, "node-3", BACK, 1.0, "no room", permanent=True)
    actions = [*failed, *cluster.tick(100.0)]
    assert len(all_of(actions, LaunchNode)) == launches
    assert bool(cluster.view.unusable()) == (not launches)


def test_without_a_provider_a_node_that_idles_takes_what_another_cannot_load() -> None:
    cluster = ready(replace(PATIENT, can_launch=False, initial=()))
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    cluster.register(facts("node-3"), 1.0)
    failing(cluster, "node-3", 1.0)
    assert one_of(cluster.tick(100.0), LoadStage).node_id == "node-3"  # who else?
    load_failed(cluster, "node-3", BACK, 100.0)
    actions = cluster.register(facts("node-4"), 100.0)
    assert one_of(actions, LoadStage).node_id == "node-4"
    assert all_of(actions, TerminateNode) == []
    failing(cluster, "node-4", 100.0)
    assert one_of(cluster.tick(200.0), LoadStage).node_id == "node-4"  # node-3 could not either
    gone = cluster.node_gone("node-4", "i-node-4", "exit", 200.0)
    assert one_of(gone, LoadStage).node_id == "node-3"


def test_members_of_different_arithmetic_form_no_pipeline() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    cluster.register(facts("node-3"), 1.0)
    actions = loaded(cluster, "node-3", BACK, 1.5, numerics_class="b")
    assert all_of(actions, FormPipeline) == []
    (event,) = [e for e in all_of(actions, LogEvent) if e.kind == "numerics_differ"]
    assert event.attributes == {"classes": "a, b"}
    assert said(cluster.tick(1.6)) == []


def test_stages_that_differ_in_their_degree_alone_form_a_pipeline_of_a_class_of_its_own() -> None:
    cluster = Prompt(SETTINGS, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    for node_id in ("node-1", "node-2"):
        cluster.register(facts(node_id), 0.0)
    plan = planned(PAIR)
    (deployment,) = plan.deployments
    (pipeline,) = deployment.pipelines
    stages = (pipeline.stages[0], replace(pipeline.stages[1], tp_degree=2))
    pipelines = (replace(pipeline, stages=stages),)
    cluster.plan_ready(replace(plan, deployments=(replace(deployment, pipelines=pipelines),)), 0.0)
    loaded(cluster, "node-1", FRONT, 0.0, numerics_class="exact-v-tp1")
    back, found = asked("node-2", BACK), Loaded(64, "exact-v-tp2", True)
    form = one_of(cluster.load_done(replace(back, tp_degree=2), found, 0.0), FormPipeline)
    assert [member.tp_degree for member in form.members] == [1, 2]
    cluster.formed(form.formation_id, 0.0)
    (head,) = cluster.view.heads(0.0)
    assert head.numerics_class == f"exact-v-tp1x{len(FRONT)}-tp2x{len(BACK)}"


def test_nothing_is_handed_over_to_a_stage_of_different_arithmetic() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 20.0, False, 1.0)
    cluster.register(facts("node-3"), 1.0)
    told = said(loaded(cluster, "node-3", BACK, 1.5, numerics_class="b"))
    assert told == ["stage_loaded", "numerics_differ"]
    assert said(cluster.tick(10.0)) == []
    assert cluster.routes()[1] != ()


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


def test_a_restart_of_the_controller_is_no_time_that_a_pipeline_was_down() -> None:
    before = ready(PATIENT)
    again = Prompt.recover(PATIENT, lambda: "f2", before.saved, 100.0, 100.0)
    again.start(100.0)
    for node_id in ("node-1", "node-2"):
        beat(again, node_id, "f1", 100.1)
    again.node_gone("node-2", "i-node-2", "exit", 500.0)
    replaced(again, 501.0)
    ready_event = all_of(again.formed("f2", 502.0), LogEvent)[0]
    assert ready_event.attributes["down_s"] == "2.000"


def test_silence_loses_a_node() -> None:
    cluster = ready()
    for tenths in range(1, 10):
        beat(cluster, "node-1", "f1", tenths / 10)
        assert said(cluster.tick(tenths / 10)) == []
    assert said(cluster.tick(1.0))[0] == "node_lost"
    with pytest.raises(NotFound):
        beat(cluster, "node-2", "f1", 1.1)


def test_a_controller_that_was_stopped_counts_nobody_as_dead_for_it() -> None:
    cluster = ready()
    for node_id in ("node-1", "node-2"):
        beat(cluster, node_id, "f1", 0.5)
    stopped_s = 60.0
    assert said(cluster.tick(stopped_s)) == []
    beat(cluster, "node-1", "f1", stopped_s + 0.1)
    lost = []
    for tenths in range(1, 32):
        now_s = stopped_s + tenths / 10
        beat(cluster, "node-1", "f1", now_s)
        lost += [(now_s, kind) for kind in said(cluster.tick(now_s)) if kind == "node_lost"]
    assert lost == [(stopped_s + SETTINGS.node_lost_s, "node_lost")]


WATCHED = replace(SETTINGS, node_lost_s=60.0, restart_grace_s=0.1)


def watched(cluster: Prompt, seconds: range, **more: object) -> list[tuple[float, str]]:
    """Beats of both nodes, and what is said, in tenths of a second."""
    heard = []
    for tenths in seconds:
        now_s = tenths / 10
        for node_id in ("node-1", "node-2"):
            heard += [(now_s, kind) for kind in said(beat(cluster, node_id, "f1", now_s, **more))]
        heard += [(now_s, kind) for kind in said(cluster.tick(now_s))]
    return heard


def test_a_head_that_has_work_and_makes_no_step_does_not_serve_until_it_does() -> None:
    cluster = ready(WATCHED)
    assert watched(cluster, range(1, 70), steps=9, has_work=True) == [(5.1, "head_stalled")]
    assert cluster.routes()[1] == ()
    assert cluster.view.heads(7.0)[0].stalled
    assert not cluster.view.heads(7.0)[0].takes_new
    assert watched(cluster, range(70, 71), steps=10, has_work=True) == [(7.0, "head_serves")]
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    assert not cluster.view.heads(7.0)[0].stalled


def test_a_head_without_work_serves_though_it_makes_no_step() -> None:
    assert watched(ready(WATCHED), range(1, 100), steps=9) == []


def test_a_head_without_beats_does_not_serve_before_it_is_lost() -> None:
    cluster = ready(WATCHED)
    heard = []
    for tenths in range(1, 31):
        beat(cluster, "node-2", "f1", tenths / 10)
        heard += [(tenths / 10, kind) for kind in said(cluster.tick(tenths / 10))]
    assert heard == [(2.0, "head_stalled")]
    assert said(beat(cluster, "node-1", "f1", 3.1)) == ["head_serves"]


def test_time_that_the_controller_did_not_watch_is_nobodys_silence() -> None:
    cluster = ready(WATCHED)
    heard = []
    for looks in range(1, 8):
        heard += said(cluster.tick(0.75 * looks))
    assert heard == []


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


def test_a_drain_loads_the_replacement_and_hands_over_once_it_is_ready() -> None:
    cluster = ready()
    beat(cluster, "node-1", "f1", 1.0, sampled_tokens=10)
    assert one_of(cluster.interrupt("node-2", 20.0, False, 1.0), LaunchNode).node_id == "node-3"
    assert cluster.interrupt("node-2", 20.0, False, 1.1) == []
    assert cluster.view.pipelines()[0].state is PipelineState.DRAINING
    beat(cluster, "node-1", "f1", 2.0, sampled_tokens=15)
    beat(cluster, "node-2", "f1", 2.0)
    assert len(cluster.routes()[1]) == 1
    actions = replaced(cluster, 2.0)
    assert one_of(actions, DrainFormation).head.node_id == "node-1"
    assert said(actions) == ["stage_loaded", "replacement_ready", "handover_started"]
    event = all_of(actions, LogEvent)[-1]
    assert event.attributes["tokens_while_preparing"] == "5"
    assert cluster.routes()[1] == ()
    assert not cluster.view.heads(2.0)[0].takes_new
    done = cluster.drained("f1", 3, 2.4)
    assert one_of(done, TerminateNode) == TerminateNode("node-2")
    assert [m.node_id for m in one_of(done, FormPipeline).members] == ["node-1", "node-3"]
    assert done.index(one_of(done, DissolveFormation)) < done.index(one_of(done, FormPipeline))
    assert cluster.drained("f1", 3, 2.5) == []


def test_a_failed_drain_hands_over_all_the_same() -> None:
    cluster = ready()
    cluster.interrupt("node-1", 20.0, False, 0.5)
    replaced(cluster, 0.5, FRONT)
    actions = cluster.drain_failed("f1", "silent", 0.8)
    assert "drain_failed" in said(actions)
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-3", "node-2"]


def test_a_notice_without_a_kill_or_a_replacement_lapses() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 2.0, False, 0.0)
    for now_s in (0.9, 1.8, 2.7):
        beat(cluster, "node-1", "f1", now_s)
        beat(cluster, "node-2", "f1", now_s)
    assert said(cluster.tick(3.0)) == ["undrained", "node_released"], "its successor is one more"
    assert cluster.view.pipelines()[0].state is PipelineState.READY
    assert all_of(replaced_idle(cluster), LoadStage) == []


def replaced_idle(cluster: Prompt) -> list[Action]:
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
    assert all_of(cluster.tick(1.0), LaunchNode) == []
    launched = one_of(cluster.tick(1.1), LaunchNode)
    assert launched.node_id == "node-4"
    later_s = 1.1 + SETTINGS.launch_timeout_s
    beat(cluster, "node-1", "", later_s)
    assert TerminateNode("node-4", kill=True) in cluster.tick(later_s)


def test_without_a_provider_a_vacant_stage_waits_for_a_node() -> None:
    settings = ClusterSettings(GOAL, (), expected_nodes=2, pipelines=1, can_launch=False)
    cluster = ready(settings)
    actions = cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert all_of(actions, LaunchNode) == []
    assert cluster.view.pipelines()[0].state is PipelineState.LOST
    assert one_of(replaced(cluster, 1.0), FormPipeline)


def test_a_lost_node_is_shown_for_a_while() -> None:
    cluster = ready()
    cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert NodeState.LOST in {view.state for view in cluster.view.nodes()}
    beat(cluster, "node-1", "", SETTINGS.lost_kept_s)
    assert TerminateNode("node-2", kill=True) in cluster.tick(SETTINGS.lost_kept_s)
    assert "node-2" not in {view.node_id for view in cluster.view.nodes()}


def restarted(before: Prompt, wall_s: float, settings: ClusterSettings = SETTINGS) -> Prompt:
    """A clock of its own, at 100 s."""
    return Prompt.recover(settings, lambda: "f9", before.saved, 100.0, wall_s)


def test_a_restarted_controller_goes_on_with_the_cluster_it_had() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    cluster.register(facts("node-3"), 0.6)
    again = restarted(cluster, 5.0)
    again.start(100.0)
    assert [route.formation_id for route in again.routes()[1]] == ["f1"]
    assert not again.view.heads(100.0)[0].takes_new
    assert said(again.tick(102.9)) == []
    for node_id in ("node-1", "node-2"):
        beat(again, node_id, "f1", 102.9)
    assert again.view.heads(102.9)[0].takes_new
    states = {view.node_id: view.state for view in again.view.nodes()}
    assert states["node-2"] is NodeState.DRAINING


def test_a_notice_goes_on_over_a_restart() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    again = restarted(cluster, 5.0)
    again.start(100.0)
    assert again.view.deadlines_s() == {"node-2": 115.5}


def test_a_lost_node_is_shown_and_ended_by_the_next_controller_too() -> None:
    cluster = ready()
    cluster.node_gone("node-2", "i-node-2", "silence", 0.5)
    again = restarted(cluster, 1.0)
    again.start(100.0)
    assert {v.node_id: v.state for v in again.view.nodes()}["node-2"] is NodeState.LOST
    late_s = 100.0 + SETTINGS.lost_kept_s
    assert TerminateNode("node-2", kill=True) in again.tick(late_s)


def test_a_hand_over_cut_short_by_a_restart_is_asked_for_again() -> None:
    cluster = ready()
    cluster.interrupt("node-2", 20.0, False, 0.5)
    replaced(cluster, 0.5)
    again = restarted(cluster, 1.0)
    actions = again.start(100.0)
    assert all_of(actions, DissolveFormation) == []
    assert one_of(actions, DrainFormation).head.node_id == "node-1"
    assert (again.routes()[1], again.handing_over()) == ((), ("f1",))
    assert again.view.heads(100.0)[0].hands_over
    done = again.drained("f1", 3, 100.1)
    assert one_of(done, TerminateNode) == TerminateNode("node-2")
    assert [m.node_id for m in one_of(done, FormPipeline).members] == ["node-1", "node-3"]
    once_more = restarted(again, 2.0).start(100.0)
    assert one_of(once_more, TerminateNode) == TerminateNode("node-2")
    assert one_of(once_more, DissolveFormation).formation_id == "f9"


@pytest.mark.parametrize(
    "other",
    [
        replace(SETTINGS, first=replace(GOAL, facts=replace(GOAL.facts, digest="d2"))),
        replace(SETTINGS, first=replace(GOAL, facts=replace(GOAL.facts, layer_count=40))),
        replace(SETTINGS, planner="exact"),
        replace(SETTINGS, pipelines=2),
    ],
)
def test_a_plan_for_something_else_is_dropped_at_the_start(other: ClusterSettings) -> None:
    cluster = ready()
    cluster.register(facts("node-3"), 0.6)
    again = restarted(cluster, 1.0, replace(other, initial=(SHAPE,) * 3, expected_nodes=3))
    actions = again.start(100.0)
    assert said(actions) == ["plan_dropped"]
    assert one_of(actions, DissolveFormation).formation_id == "f1"
    ask = one_of(actions, AskPlan)
    assert (ask.number, len(ask.nodes)) == (2, 3)
    assert (all_of(actions, LaunchNode), all_of(actions, TerminateNode)) == ([], [])
    loads = all_of(
        again.plan_ready(planned(PAIR, number=ask.number, model=other.first.model), 100.0),
        LoadStage,
    )
    assert {(load.node_id, load.model) for load in loads} == {
        ("node-1", other.first.model),
        ("node-2", other.first.model),
    }


def test_nodes_of_a_shape_that_is_not_wanted_any_more_are_exchanged() -> None:
    cluster = ready()
    cluster.register(facts("node-3"), 0.6)
    fast = NodeShape(1 << 30, 3.0)
    again = restarted(cluster, 1.0, replace(SETTINGS, initial=(SHAPE, fast)))
    actions = again.start(100.0)
    assert [end.node_id for end in all_of(actions, TerminateNode)] == ["node-2", "node-3"]
    assert one_of(actions, LaunchNode).shape == fast
    assert all_of(actions, AskPlan) == []
