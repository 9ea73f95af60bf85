from dataclasses import replace
from itertools import pairwise

from services.common.generation import LayerRange
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import (
    Action,
    CopyAhead,
    DepartFormation,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    LogEvent,
    NodeState,
    TerminateNode,
)
from services.controller.core.cluster.market import NO_CAPACITY
from services.controller.core.strategy import STRATEGIES
from tests.unit.controller.small_cluster import (
    BACK,
    PATIENT,
    Prompt,
    all_of,
    beat,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
    ready,
    replaced,
    said,
)


def test_of_two_notices_the_earlier_deadline_counts() -> None:
    cluster = ready(PATIENT)
    assert "interruption_noticed" in said(cluster.interrupt("node-2", 120.0, False, 1.0))
    assert cluster.interrupt("node-2", 120.0, False, 2.0) == []
    assert cluster.view.deadlines_s() == {"node-2": 121.0}
    assert "interruption_noticed" in said(cluster.interrupt("node-2", 10.0, False, 3.0))
    assert cluster.view.deadlines_s() == {"node-2": 13.0}
    assert cluster.interrupt("node-2", 60.0, False, 4.0) == []
    assert said(cluster.tick(13.0)) == [], "it may be about to be taken at this very moment"
    assert "undrained" in said(cluster.tick(13.0 + PATIENT.lapse_s))


def test_a_replacement_that_is_refused_is_launched_again_behind_ever_longer_pauses() -> None:
    cluster = ready(PATIENT)
    served_s = PATIENT.stable_s + 1.0
    launch = one_of(cluster.interrupt("node-2", 60.0, False, served_s), LaunchNode)
    launched = [served_s]
    for step in range(1, 200):
        now_s = served_s + 0.1 * step
        cluster.launch_failed(launch.node_id, NO_CAPACITY, now_s - 0.05)
        for again in all_of(cluster.tick(now_s), LaunchNode):
            launch = again
            launched.append(now_s)
    pauses = [later - sooner for sooner, later in pairwise(launched)]
    assert pauses == sorted(pauses)
    assert len(pauses) == 5


def test_whoever_is_let_go_behind_its_deadline_is_not_used_again() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 4.0, False, 1.0)
    drain = one_of(replaced(cluster, 4.9), DrainFormation)
    actions = cluster.drained(drain.formation_id, 1, 5.0 + PATIENT.lapse_s + 0.1)
    assert one_of(actions, TerminateNode) == TerminateNode("node-2")
    assert "undrained" not in said(actions) + said(cluster.tick(60.0))


def test_a_process_that_was_told_to_stop_is_replaced_and_let_go() -> None:
    cluster = ready(PATIENT)
    actions = beat(cluster, "node-2", "f1", 1.0, departs_in_s=20.0)
    assert said(actions) == ["interruption_noticed", "node_launched"]
    assert all_of(beat(cluster, "node-2", "f1", 1.2, departs_in_s=19.7), LogEvent) == []
    drain = one_of(replaced(cluster, 5.0), DrainFormation)
    actions = cluster.drained(drain.formation_id, 1, 5.5)
    assert one_of(actions, TerminateNode) == TerminateNode("node-2")
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-1", "node-3"]
    assert all_of(cluster.node_gone("node-2", "i-node-2", "exit status 0", 6.0), LaunchNode) == []


def test_one_that_no_other_replaces_in_time_is_sealed_before_it_goes() -> None:
    cluster = ready(PATIENT)
    beat(cluster, "node-2", "f1", 1.0, departs_in_s=20.0)
    last_s = 21.0 - PATIENT.seal_s
    assert all_of(cluster.tick(last_s - 0.1), DrainFormation) == []
    drain = one_of(cluster.tick(last_s), DrainFormation)
    actions = cluster.drained(drain.formation_id, 2, last_s)
    assert one_of(actions, TerminateNode) == TerminateNode("node-2")
    assert one_of(actions, DissolveFormation).formation_id == "f1"
    assert all_of(actions, FormPipeline) == []
    assert said(cluster.tick(22.0)) == []  # nothing lapses: it goes for certain
    cluster.node_gone("node-2", "i-node-2", "exit status 0", 22.0)
    assert one_of(replaced(cluster, 23.0), FormPipeline).formation_id == "f2"


def test_where_none_will_come_the_other_pipelines_take_over_at_once() -> None:
    settings = replace(PATIENT, can_launch=False, initial=(), pipelines=2)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    whole = LayerRange(0, 30)
    for node_id in ("node-1", "node-2"):
        cluster.register(facts(node_id), 0.0)
    plan = planned({"node-1": whole}, {"node-2": whole})
    cluster.plan_ready(plan, 0.0)
    for node_id in ("node-1", "node-2"):
        form = one_of(loaded(cluster, node_id, whole, 0.0), FormPipeline)
        cluster.formed(form.formation_id, 0.0)
    actions = beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0)
    assert one_of(actions, DrainFormation).formation_id == "f2"
    cluster.drained("f2", 1, 1.2)
    assert [route.pipeline_id for route in cluster.routes()[1]] == ["pipeline-1"]
    cluster.node_gone("node-2", "i-node-2", "exit status 0", 2.0)
    assert one_of(cluster.register(facts("node-2", "i-new"), 3.0), LoadStage).layers == whole
    beat(cluster, "node-1", "f1", 4.0, departs_in_s=20.0)
    assert all_of(cluster.tick(4.1), DrainFormation) == []  # the only one that serves


def two_pipelines(ahead_s: float = 0.0) -> Prompt:
    """Of a node each; nobody launches any."""
    settings = replace(PATIENT, can_launch=False, initial=(), pipelines=2, ahead_s=ahead_s)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    whole = LayerRange(0, 30)
    for node_id in ("node-1", "node-2"):
        cluster.register(facts(node_id), 0.0)
    cluster.plan_ready(planned({"node-1": whole}, {"node-2": whole}), 0.0)
    for node_id in ("node-1", "node-2"):
        form = one_of(loaded(cluster, node_id, whole, 0.0), FormPipeline)
        cluster.formed(form.formation_id, 0.0)
    return cluster


def test_what_a_market_takes_goes_on_with_what_it_has_until_then_and_takes_nothing_new() -> None:
    cluster = two_pipelines()
    actions = beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    departs = one_of(actions, DepartFormation)
    assert (departs.formation_id, departs.until_s) == ("f2", 21.0 - PATIENT.seal_s)
    assert all_of(actions, DrainFormation) == []
    assert [route.pipeline_id for route in cluster.routes()[1]] == ["pipeline-1"]
    assert cluster.core.handing_over() == ("f2",)
    head = next(h for h in cluster.view.heads(1.0) if h.route.formation_id == "f2")
    assert (head.takes_new, head.departs, head.hands_over) == (False, True, False)
    assert cluster.view.beside("f2").keys() == {"f1"}
    again = beat(cluster, "node-2", "f2", 2.0, departs_in_s=19.0, notice=NoticeKind.SPOT)
    assert all_of(again, DepartFormation) == [], "it is told once"
    assert all_of(cluster.tick(departs.until_s - 0.1), DrainFormation) == []
    assert one_of(cluster.tick(departs.until_s), DrainFormation).formation_id == "f2"


def test_who_has_nothing_left_to_do_is_drained_before_its_time() -> None:
    cluster = two_pipelines()
    beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    cluster.core.departed("f2", 3.0)
    assert one_of(cluster.tick(3.0), DrainFormation).formation_id == "f2"
    cluster.core.departed("f2", 3.1)
    assert cluster.tick(3.1) == []


def test_one_that_has_to_go_sooner_departs_sooner() -> None:
    cluster = two_pipelines()
    beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    actions = beat(cluster, "node-2", "f2", 2.0, departs_in_s=8.0, notice=NoticeKind.SPOT)
    assert one_of(actions, DepartFormation).until_s == 10.0 - PATIENT.seal_s


def test_a_departure_is_begun_again_by_the_next_controller() -> None:
    cluster = two_pipelines()
    beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    again = Prompt.recover(cluster.core.settings, drawer(), cluster.saved, 2.0, 2.0)
    assert one_of(again.start(2.0), DepartFormation).formation_id == "f2"


def test_what_departs_takes_nothing_new_behind_a_restart_whatever_becomes_of_the_others() -> None:
    """Its head refuses calls from the first drain on."""
    cluster = two_pipelines()
    beat(cluster, "node-2", "f2", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    cluster.node_gone("node-1", "i-node-1", "exit status 1", 1.5)
    again = Prompt.recover(cluster.core.settings, drawer(), cluster.saved, 2.0, 2.0)
    assert all_of(again.start(2.0), DepartFormation) == []
    beat(again, "node-2", "f2", 2.1, departs_in_s=18.9, notice=NoticeKind.SPOT)
    assert again.routes()[1] == ()
    assert again.core.handing_over() == ("f2",)
    assert one_of(again.tick(21.0 - PATIENT.seal_s), DrainFormation).formation_id == "f2"


def test_where_others_take_over_blocks_go_ahead_of_what_leaves() -> None:
    cluster = two_pipelines(ahead_s=4.0)
    beat(cluster, "node-2", "f2", 0.9, has_work=True)
    actions = beat(cluster, "node-2", "f2", 1.0, has_work=True, departs_in_s=20.0)
    ahead = one_of(actions, CopyAhead)
    assert all_of(actions, DrainFormation) == []
    assert (ahead.formation_id, ahead.followers, ahead.limit_s) == ("f2", (), 4.0)
    again = beat(cluster, "node-2", "f2", 2.0, has_work=True, departs_in_s=19.0)
    assert all_of(again, CopyAhead) == all_of(again, DrainFormation) == []
    assert one_of(cluster.copied("f2", 3.0), DrainFormation).formation_id == "f2"


def test_who_must_go_at_once_is_not_kept_by_blocks_for_others() -> None:
    cluster = two_pipelines(ahead_s=4.0)
    beat(cluster, "node-2", "f2", 0.9, has_work=True)
    one_of(beat(cluster, "node-2", "f2", 1.0, has_work=True, departs_in_s=20.0), CopyAhead)
    assert one_of(cluster.tick(21.0 - PATIENT.seal_s), DrainFormation).formation_id == "f2"


def test_the_only_one_that_serves_does_not_depart() -> None:
    cluster = two_pipelines()
    beat(cluster, "node-1", "f1", 1.0, departs_in_s=20.0, notice=NoticeKind.SPOT)
    actions = beat(cluster, "node-2", "f2", 1.5, departs_in_s=20.0, notice=NoticeKind.SPOT)
    assert all_of(actions, DepartFormation) == []


def test_a_departure_goes_on_over_a_restart() -> None:
    cluster = ready(PATIENT)
    beat(cluster, "node-2", "f1", 1.0, departs_in_s=20.0)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 2.0, 2.0)
    again.start(2.0)
    assert again.view.deadlines_s() == {"node-2": 21.0}
    assert one_of(again.tick(21.0 - PATIENT.seal_s), DrainFormation).formation_id == "f1"


def test_a_replacement_that_is_not_to_be_had_is_ordered_after_growing_pauses() -> None:
    cluster = ready(replace(PATIENT, stable_s=10.0))
    cluster.tick(20.0)
    ordered, now_s = 0, 20.0
    actions = cluster.interrupt("node-2", 100.0, False, now_s)
    while now_s < 50.0:
        launched = all_of(actions, LaunchNode)
        ordered += len(launched)
        actions = [
            action
            for launch in launched
            for action in cluster.launch_failed(launch.node_id, "no capacity", now_s)
        ]
        now_s += 0.1
        actions += cluster.tick(now_s)
    assert 3 <= ordered <= 8


def advised(cluster: Prompt, now_s: float, node_id: str = "node-2") -> list[Action]:
    return beat(cluster, node_id, "f1", now_s, notice=NoticeKind.REBALANCE)


def test_who_is_likely_to_go_serves_until_a_replacement_holds_its_stage_and_ends_then() -> None:
    cluster = ready(PATIENT)
    assert said(advised(cluster, 1.0)) == ["replacement_advised", "node_launched"]
    assert advised(cluster, 1.5) == [], "the same advice again is no event"
    cluster.core.advise("node-2")
    assert cluster.tick(2.0) == [], "nor by the other way"
    assert cluster.view.deadlines_s() == {}
    assert [route.pipeline_id for route in cluster.routes()[1]] == ["pipeline-1"]
    drain = one_of(replaced(cluster, 900.0), DrainFormation)
    actions = cluster.drained(drain.formation_id, 1, 900.5)
    assert one_of(actions, TerminateNode) == TerminateNode("node-2")
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-1", "node-3"]


def test_where_no_replacement_is_to_be_had_advice_costs_nothing() -> None:
    cluster = ready(PATIENT)
    cluster.tick(PATIENT.stable_s + 1.0)
    now_s, ordered = PATIENT.stable_s + 1.0, 0
    actions = advised(cluster, now_s)
    for _ in range(300):
        for launch in all_of(actions, LaunchNode):
            ordered += 1
            cluster.launch_failed(launch.node_id, NO_CAPACITY, now_s)
        now_s += 0.1
        actions = cluster.tick(now_s)
        assert all_of(actions, DrainFormation) == []
    assert 2 <= ordered <= 8, "it is tried again behind growing pauses"
    assert cluster.view.lacks() == frozenset()
    assert {node.state for node in cluster.view.nodes()} >= {NodeState.READY}


def test_a_notice_does_not_wait_for_who_follows_advice() -> None:
    cluster = ready(PATIENT)
    advised(cluster, 1.0, "node-1")
    cluster.interrupt("node-2", 60.0, False, 1.5)
    cluster.register(facts("node-4"), 2.0)
    drain = one_of(loaded(cluster, "node-4", BACK, 3.0), DrainFormation)
    actions = cluster.drained(drain.formation_id, 1, 3.5)
    assert [m.node_id for m in one_of(actions, FormPipeline).members] == ["node-1", "node-4"]


def test_one_that_came_by_itself_stays_for_whoever_finds_no_other() -> None:
    settings = replace(PATIENT, can_launch=False, initial=(), pipelines=1)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    whole = LayerRange(0, 30)
    cluster.register(facts("node-1"), 0.0)
    cluster.plan_ready(planned({"node-1": whole}), 0.0)
    cluster.formed(one_of(loaded(cluster, "node-1", whole, 0.0), FormPipeline).formation_id, 0.0)
    advised(cluster, 1.0, "node-1")
    assert one_of(cluster.register(facts("node-2"), 2.0), LoadStage).node_id == "node-2"
    drain = one_of(loaded(cluster, "node-2", whole, 3.0), DrainFormation)
    actions = cluster.drained(drain.formation_id, 1, 3.5)
    assert all_of(actions, TerminateNode) == []
    cluster.formed(one_of(actions, FormPipeline).formation_id, 4.0)
    beat(cluster, "node-2", "f2", 5.0, notice=NoticeKind.REBALANCE)
    assert all_of(cluster.tick(6.0), LoadStage) == [], "it is no better than who sits there"
    actions = cluster.node_gone("node-2", "i-node-2", "exit", 7.0)
    assert "stage_taken" in said(actions)


def test_advice_goes_on_over_a_restart() -> None:
    cluster = ready(PATIENT)
    launch = one_of(advised(cluster, 1.0), LaunchNode)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 2.0, 2.0)
    again.start(2.0)
    assert launch.node_id == "node-3"
    assert all_of(replaced(again, 3.0), DrainFormation) != []


def test_a_notice_that_lapses_leaves_advice_as_it_was() -> None:
    cluster = ready(PATIENT)
    advised(cluster, 1.0)
    cluster.interrupt("node-2", 10.0, False, 1.5)
    assert "undrained" in said(cluster.tick(11.5 + PATIENT.lapse_s))
    assert one_of(replaced(cluster, 30.0), DrainFormation).formation_id == "f1"


def test_nobody_goes_on_advice_where_nothing_loads_meanwhile() -> None:
    cluster = ready(replace(PATIENT, strategy=STRATEGIES["none"]))
    assert advised(cluster, 1.0) == []


AHEAD = replace(PATIENT, ahead_s=4.0)


def busy(cluster: Prompt, now_s: float) -> None:
    """Its head has something that runs."""
    beat(cluster, "node-1", "f1", now_s, has_work=True)


def test_blocks_go_ahead_before_what_is_replaced_is_drained() -> None:
    cluster = ready(AHEAD)
    cluster.interrupt("node-2", 60.0, False, 1.0)
    busy(cluster, 2.9)
    actions = replaced(cluster, 3.0)
    ahead = one_of(actions, CopyAhead)
    assert all_of(actions, DrainFormation) == []
    assert (ahead.formation_id, ahead.limit_s) == ("f1", 4.0)
    assert [member.node_id for member in ahead.members] == ["node-1", "node-2"]
    assert [member.node_id for member in ahead.followers] == ["node-1", "node-3"]
    assert cluster.routes()[1] != (), "it serves on meanwhile"
    assert all_of(cluster.tick(3.5), CopyAhead) == []
    drain = one_of(cluster.copied("f1", 4.0), DrainFormation)
    assert drain.formation_id == "f1"
    assert cluster.copied("f1", 4.1) == []


def test_blocks_have_half_of_the_time_that_is_left_and_none_that_is_not() -> None:
    for notice_s, limit_s in ((2.0 + PATIENT.seal_s + 2.0, 1.0), (2.0 + PATIENT.seal_s, None)):
        cluster = ready(AHEAD)
        cluster.interrupt("node-2", notice_s, False, 1.0)
        busy(cluster, 2.9)
        actions = replaced(cluster, 3.0)
        if limit_s is None:
            assert all_of(actions, CopyAhead) == []
            assert all_of(actions, DrainFormation) != []
        else:
            assert one_of(actions, CopyAhead).limit_s == limit_s


def test_nothing_goes_ahead_of_a_formation_that_runs_nothing() -> None:
    cluster = ready(AHEAD)
    cluster.interrupt("node-2", 60.0, False, 1.0)
    actions = replaced(cluster, 3.0)
    assert all_of(actions, CopyAhead) == []
    assert all_of(actions, DrainFormation) != []


def test_whoever_must_go_does_not_wait_for_blocks() -> None:
    cluster = ready(AHEAD)
    beat(cluster, "node-2", "f1", 1.0, departs_in_s=20.0)
    busy(cluster, 2.9)
    one_of(replaced(cluster, 3.0), CopyAhead)
    assert one_of(cluster.tick(21.0 - PATIENT.seal_s), DrainFormation).formation_id == "f1"
    assert all_of(cluster.copied("f1", 20.0), DrainFormation) == []


def test_who_was_to_follow_and_is_lost_gets_no_blocks_and_holds_nobody_up() -> None:
    cluster = ready(AHEAD)
    cluster.interrupt("node-2", 600.0, False, 1.0)
    busy(cluster, 2.9)
    one_of(replaced(cluster, 3.0), CopyAhead)
    cluster.node_gone("node-3", "i-node-3", "exit status 1", 3.5)
    assert all_of(cluster.copied("f1", 4.0), DrainFormation) == []
    cluster.register(facts("node-4"), 30.0)
    actions = loaded(cluster, "node-4", BACK, 31.0)
    assert [member.node_id for member in one_of(actions, CopyAhead).followers] == [
        "node-1",
        "node-4",
    ]
