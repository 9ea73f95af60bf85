"""A later plan, while an older one serves or is being carried out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import (
    Action,
    CopyAhead,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    Loaded,
    LoadStage,
    NodeState,
    TerminateNode,
)
from services.controller.core.cluster.market import OVER_BUDGET
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.settings import ClusterSettings
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PAIR,
    PATIENT,
    Prompt,
    Stages,
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
    said,
)

WHOLE, FIRST, REST = LayerRange(0, 30), LayerRange(0, 10), LayerRange(10, 30)
ALONE = replace(PATIENT, can_launch=False, initial=(), expected_nodes=1)


def serving(
    *pipelines: Stages, idle: tuple[str, ...] = (), settings: ClusterSettings = ALONE
) -> Prompt:
    """Pipelines whose nodes came by themselves, in formations f1, f2 and so on."""
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    names = [name for stages in pipelines for name in stages]
    for node_id in (*names, *idle):
        cluster.register(facts(node_id), 0.0)
    carry_out(cluster, cluster.plan_ready(planned(*pipelines), 0.0), 0.0)
    assert len(cluster.routes()[1]) == len(pipelines)
    return cluster


def carry_out(cluster: Prompt, actions: list[Action], now_s: float) -> list[Action]:
    """Answers every load, formation and drain at once; returns all that was asked for."""
    done: list[Action] = []
    while actions:
        action, *actions = actions
        done.append(action)
        if isinstance(action, LoadStage):
            actions += loaded(cluster, action.node_id, action.layers, now_s)
        elif isinstance(action, FormPipeline):
            actions += cluster.formed(action.formation_id, now_s)
        elif isinstance(action, DrainFormation):
            actions += cluster.drained(action.formation_id, 1, now_s)
        elif isinstance(action, LaunchNode):
            actions += cluster.register(facts(action.node_id), now_s)
    return done


def restarted(cluster: Prompt) -> Prompt:
    """The next controller, at 50 s."""
    return Prompt.recover(ALONE, iter(("g1", "g2")).__next__, cluster.saved, 50.0, 50.0)


def running(cluster: Prompt) -> dict[str, list[tuple[str, LayerRange]]]:
    """Nodes and layers of each pipeline."""
    views = cluster.view.pipelines()
    return {v.pipeline_id: [(s.node_id, s.layers) for s in v.stages] for v in views}


def test_a_pipeline_that_is_equal_in_both_plans_goes_on_untouched() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, {"c": WHOLE}, idle=("d",))
    actions = cluster.plan_ready(planned({"d": WHOLE}, {"a": FRONT, "b": BACK}, number=2), 1.0)
    assert [load.node_id for load in all_of(actions, LoadStage)] == ["d"]
    done = carry_out(cluster, actions, 1.0)
    assert [drain.formation_id for drain in all_of(done, DrainFormation)] == ["f2"]
    formations = {r.pipeline_id: r.formation_id for r in cluster.routes()[1]}
    assert formations == {"pipeline-1": "f1", "pipeline-3": "f3"}
    assert running(cluster)["pipeline-3"] == [("d", WHOLE)]


def test_the_same_layers_on_more_ranks_are_another_stage() -> None:
    cluster = serving({"a": WHOLE}, idle=("b",))
    plan = planned({"b": WHOLE}, number=2)
    deployment = plan.deployments[0]
    pipeline = deployment.pipelines[0]
    wider = replace(pipeline, stages=(replace(pipeline.stages[0], tp_degree=2),))
    plan = replace(plan, deployments=(replace(deployment, pipelines=(wider,)),))
    load = one_of(cluster.plan_ready(plan, 1.0), LoadStage)
    assert (load.node_id, load.layers, load.tp_degree) == ("b", WHOLE, 2)
    form = one_of(cluster.load_done(load, Loaded(64, "a"), 1.5), FormPipeline)
    assert [member.tp_degree for member in form.members] == [2]


def test_what_takes_the_place_is_made_before_what_serves_is_broken() -> None:
    cluster = serving({"a": WHOLE}, idle=("b", "c"))
    actions = cluster.plan_ready(planned({"b": FRONT, "c": BACK}, number=2), 1.0)
    assert all_of(actions, DrainFormation) == []
    loaded(cluster, "b", FRONT, 1.5)
    form = one_of(loaded(cluster, "c", BACK, 2.0), FormPipeline)
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    drain = one_of(cluster.formed(form.formation_id, 2.5), DrainFormation)
    assert drain.formation_id == "f1"
    assert [route.formation_id for route in cluster.routes()[1]] == [form.formation_id]
    done = cluster.drained("f1", 2, 3.0)
    assert "handover_finished" in said(done)
    assert list(running(cluster)) == ["pipeline-2"]


def test_of_two_that_need_each_others_nodes_one_is_changed_while_the_other_serves() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK})
    plan = planned({"a": FRONT, "c": BACK}, {"b": FRONT, "d": BACK}, number=2)
    actions = cluster.plan_ready(plan, 1.0)
    loads = [(load.node_id, load.layers) for load in all_of(actions, LoadStage)]
    assert loads == [("c", BACK), ("b", FRONT)], "survivors keep what they hold"
    assert all_of(actions, DrainFormation) == []
    actions = loaded(cluster, "c", BACK, 1.1)
    assert all_of(actions, DrainFormation) == [], "b loads still, and nobody is in its way"
    first = one_of(loaded(cluster, "b", FRONT, 1.2), DrainFormation)
    assert first.formation_id == "f1"
    assert len(cluster.routes()[1]) == 1
    actions = cluster.drained("f1", 1, 1.5)
    assert one_of(actions, DrainFormation).formation_id == "f2"
    done = carry_out(cluster, cluster.drained("f2", 1, 1.6), 1.7)
    assert all_of(done, LoadStage) == []
    assert len(cluster.routes()[1]) == 2


def test_while_one_is_changed_no_other_is() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK})
    plan = planned({"a": FIRST, "b": REST}, {"c": FIRST, "d": REST}, number=2)
    loads = all_of(cluster.plan_ready(plan, 1.0), LoadStage)
    assert [load.node_id for load in loads] == ["a", "b", "c", "d"]
    for node_id, layers in (("c", FIRST), ("a", FIRST)):
        assert all_of(loaded(cluster, node_id, layers, 1.1), DrainFormation) == []
    assert all_of(loaded(cluster, "b", REST, 1.2), DrainFormation) == []
    assert one_of(loaded(cluster, "d", REST, 1.25), DrainFormation).formation_id == "f1"
    form = one_of(cluster.drained("f1", 1, 1.3), FormPipeline)
    assert all_of(cluster.tick(1.35), DrainFormation) == []
    assert one_of(cluster.formed(form.formation_id, 1.4), DrainFormation).formation_id == "f2"
    assert len(cluster.routes()[1]) == 1


AHEAD = replace(ALONE, ahead_s=4.0)


def test_before_its_turn_blocks_go_ahead_to_the_pipeline_that_waits_for_its_nodes() -> None:
    """Its readers wait for that one, whoever serves meanwhile."""
    cluster = serving({"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK}, settings=AHEAD)
    beat(cluster, "a", "f1", 0.9, has_work=True)
    cluster.plan_ready(planned({"a": FIRST, "b": REST}, {"c": FRONT, "d": BACK}, number=2), 1.0)
    loaded(cluster, "a", FIRST, 1.1)
    actions = loaded(cluster, "b", REST, 1.2)
    assert all_of(actions, DrainFormation) == []
    ahead = one_of(actions, CopyAhead)
    assert (ahead.formation_id, ahead.limit_s, ahead.waited_for) == ("f1", 4.0, True)
    assert [(m.node_id, m.layers) for m in ahead.followers] == [("a", FIRST), ("b", REST)]
    assert len(cluster.routes()[1]) == 2, "it serves on meanwhile"
    assert cluster.tick(2.0) == []
    assert one_of(cluster.copied("f1", 2.5), DrainFormation).formation_id == "f1"


def test_what_others_go_on_with_has_its_blocks_go_to_them() -> None:
    cluster = serving({"a": WHOLE}, {"b": WHOLE}, settings=AHEAD)
    beat(cluster, "b", "f2", 0.9, has_work=True)
    ahead = one_of(cluster.plan_ready(planned({"a": WHOLE}, number=2), 1.0), CopyAhead)
    assert (ahead.formation_id, ahead.followers, ahead.waited_for) == ("f2", (), False)
    assert one_of(cluster.copied("f2", 2.5), DrainFormation).formation_id == "f2"


def test_one_that_has_two_in_its_way_is_waited_for_behind_the_second() -> None:
    cluster = serving(
        {"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK}, {"e": WHOLE}, settings=AHEAD
    )
    for head, formation in (("a", "f1"), ("c", "f2")):
        beat(cluster, head, formation, 0.9, has_work=True)
    cluster.plan_ready(planned({"a": FIRST, "c": REST}, {"e": WHOLE}, number=2), 1.0)
    loaded(cluster, "a", FIRST, 1.1)
    first = one_of(loaded(cluster, "c", REST, 1.2), CopyAhead)
    assert (first.formation_id, first.followers, first.waited_for) == ("f1", (), False)
    one_of(cluster.copied("f1", 2.0), DrainFormation)
    second = one_of(cluster.drained("f1", 1, 2.1), CopyAhead)
    assert (second.formation_id, second.waited_for) == ("f2", True)
    assert [member.node_id for member in second.followers] == ["a", "c"]


def test_a_plan_is_adopted_while_another_one_is_carried_out() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, idle=("c", "d"))
    cluster.plan_ready(planned({"c": FRONT, "d": BACK}, number=2), 1.0)
    loaded(cluster, "c", FRONT, 1.1)
    actions = cluster.plan_ready(planned({"a": FRONT, "b": BACK}, {"c": WHOLE}, number=3), 1.2)
    assert cluster.plan is not None
    assert cluster.plan.number == 3
    assert all_of(actions, DrainFormation) == []
    assert one_of(actions, LoadStage).layers == WHOLE
    carry_out(cluster, [*actions, *loaded(cluster, "d", BACK, 1.3)], 1.4)
    assert len(cluster.routes()[1]) == 2
    assert cluster.routes()[1][0].formation_id == "f1", "it never stopped"


def test_a_plan_that_is_not_newer_changes_nothing() -> None:
    cluster = serving({"a": WHOLE}, idle=("b",))
    assert cluster.plan_ready(planned({"b": WHOLE}, number=1), 1.0) == []
    carry_out(cluster, cluster.plan_ready(planned({"b": WHOLE}, number=7), 1.0), 1.0)
    assert cluster.plan_ready(planned({"a": WHOLE}, number=5), 1.0) == []
    assert cluster.view.next_plan_number == 8


def test_a_name_that_something_else_runs_by_is_not_given_again() -> None:
    cluster = serving({"a": WHOLE}, idle=("b",))
    cluster.plan_ready(planned({"b": WHOLE}, number=2), 1.0)
    assert sorted(running(cluster)) == ["pipeline-1", "pipeline-2"]
    assert cluster.plan is not None
    assert [p.pipeline_id for _, p in cluster.plan.pipelines()] == ["pipeline-2"]


def test_the_last_that_serves_waits_for_what_may_come_without_it() -> None:
    cluster = ready(PATIENT)
    plan = planned({"?1": WHOLE}, {"node-1": WHOLE}, number=2)
    actions = cluster.plan_ready(plan, 1.0)
    launched = one_of(actions, LaunchNode).node_id
    assert one_of(actions, LoadStage).node_id == "node-1"
    actions += loaded(cluster, "node-1", WHOLE, 1.5)
    assert all_of(actions, DrainFormation) == []
    assert all_of(cluster.tick(5.0), DrainFormation) == []
    cluster.register(facts(launched), 6.0)
    form = one_of(loaded(cluster, launched, WHOLE, 7.0), FormPipeline)
    assert one_of(cluster.formed(form.formation_id, 7.1), DrainFormation).formation_id == "f1"


def test_where_all_serve_in_one_the_next_plan_must_break_it() -> None:
    cluster = serving(PAIR)
    actions = cluster.plan_ready(planned({"node-2": FRONT, "node-1": BACK}, number=2), 1.0)
    done = carry_out(cluster, actions, 1.0)
    kinds = [type(a) for a in done if isinstance(a, LoadStage | DrainFormation | FormPipeline)]
    assert kinds == [LoadStage, LoadStage, DrainFormation, FormPipeline]
    assert running(cluster) == {"pipeline-2": [("node-2", FRONT), ("node-1", BACK)]}


def test_nodes_that_were_launched_and_have_no_place_end_when_the_plan_is_carried_out() -> None:
    cluster = ready(PATIENT)
    actions = cluster.plan_ready(planned({"node-2": WHOLE}, number=2), 1.0)
    assert all_of(actions, TerminateNode) == []
    done = carry_out(cluster, actions, 1.0)
    assert one_of(done, TerminateNode) == TerminateNode("node-1")
    assert running(cluster) == {"pipeline-2": [("node-2", WHOLE)]}
    cluster = serving({"a": WHOLE}, {"b": WHOLE})
    done = carry_out(cluster, cluster.plan_ready(planned({"b": WHOLE}, number=2), 1.0), 1.0)
    assert all_of(done, TerminateNode) == [], "nobody launched it"


def test_a_launched_node_that_was_started_again_by_others_ends_as_it_would_have() -> None:
    cluster = ready(PATIENT)
    carry_out(cluster, cluster.register(facts("node-1", "i-new"), 0.5), 0.5)
    cluster.load_done(replace(asked("node-1", FRONT), incarnation="i-new"), Loaded(64, "a"), 0.6)
    done = carry_out(cluster, cluster.plan_ready(planned({"node-2": WHOLE}, number=2), 1.0), 1.0)
    assert one_of(done, TerminateNode) == TerminateNode("node-1")


def of_spot(number: int) -> Plan:
    """One node of an offer does everything."""
    plan = planned({"?1": WHOLE}, number=number)
    (deployment,) = plan.deployments
    (pipeline,) = deployment.pipelines
    stages = tuple(replace(stage, offer_id="spot") for stage in pipeline.stages)
    pipelines = (replace(pipeline, stages=stages),)
    return replace(plan, deployments=(replace(deployment, pipelines=pipelines),))


def kept(offer_id: str) -> Prompt:
    """A node of spot, node-3, does everything, and node-1, which was bought elsewhere, is kept."""
    cluster = ready(replace(PATIENT, spares=1))
    cluster.bought("node-1", offer_id)
    launch = one_of(cluster.plan_ready(of_spot(2), 1.0), LaunchNode)
    cluster.bought(launch.node_id, "spot")
    carry_out(cluster, cluster.register(facts(launch.node_id), 1.1), 1.1)
    assert [spare.node_id for spare in cluster.view.spares()] == ["node-1"]
    return cluster


def test_whoever_was_to_replace_a_node_of_the_old_plan_ends_too() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 60.0, False, 0.5)
    cluster.bought("node-3", "firm")
    cluster.register(facts("node-3"), 0.6)
    whole = one_of(cluster.plan_ready(of_spot(2), 1.0), LaunchNode).node_id
    ended = all_of(cluster.launch_failed(whole, OVER_BUDGET, 1.1), TerminateNode)
    assert ended == [TerminateNode("node-3")], "its money is needed"


def test_a_seat_for_another_offer_than_its_node_was_bought_of_is_another_seat() -> None:
    cluster = ready(PATIENT)
    plan = of_spot(2)
    launch = one_of(cluster.plan_ready(plan, 1.0), LaunchNode)
    cluster.bought(launch.node_id, "firm")
    carry_out(cluster, cluster.register(facts(launch.node_id), 1.1), 1.1)
    again = one_of(cluster.plan_ready(replace(plan, number=3), 2.0), LaunchNode)
    assert again.offer_id == "spot"
    cluster.bought(again.node_id, "spot")
    carry_out(cluster, cluster.register(facts(again.node_id), 2.1), 2.1)
    assert all_of(cluster.plan_ready(replace(plan, number=4), 3.0), LaunchNode) == []


def test_a_seat_for_an_offer_is_not_for_whom_the_plan_lets_go() -> None:
    cluster = ready(PATIENT)
    cluster.bought("node-1", "firm")
    cluster.node_gone("node-2", "i-node-2", "exit", 0.5)
    launch = one_of(cluster.plan_ready(of_spot(2), 1.0), LaunchNode)
    assert launch.offer_id == "spot"
    assert "stage_taken" not in said(cluster.launch_failed(launch.node_id, OVER_BUDGET, 1.1))


def test_a_spare_takes_the_seat_of_a_lost_node_whatever_it_was_bought_of() -> None:
    cluster = kept("firm")
    lost = cluster.node_gone("node-3", "i-node-3", "exit", 20.0)
    assert [member.node_id for member in one_of(lost, FormPipeline).members] == ["node-1"]


def test_a_spare_that_a_seat_waits_for_the_money_of_is_not_taken_instead() -> None:
    cluster = ready(replace(PATIENT, spares=1))
    cluster.bought("node-1", "firm")
    cluster.bought("node-2", "firm")
    launch = one_of(cluster.plan_ready(of_spot(2), 1.0), LaunchNode)
    done = carry_out(cluster, cluster.launch_failed(launch.node_id, OVER_BUDGET, 1.1), 1.2)
    assert {end.node_id for end in all_of(done, TerminateNode)} == {"node-1", "node-2"}
    assert "stage_taken" not in said(done)


def test_a_seat_for_an_offer_is_for_whom_the_plan_lets_go_of_the_same() -> None:
    cluster = ready(PATIENT)
    cluster.bought("node-1", "spot")
    cluster.node_gone("node-2", "i-node-2", "exit", 0.5)
    assert one_of(cluster.plan_ready(of_spot(2), 1.0), LoadStage).node_id == "node-1"


def test_a_lost_node_of_the_old_plan_is_not_replaced_and_of_the_new_one_it_is() -> None:
    cluster = ready(PATIENT)
    launched = one_of(cluster.plan_ready(planned({"?1": WHOLE}, number=2), 1.0), LaunchNode).node_id
    gone = cluster.node_gone("node-2", "i-node-2", "exit", 1.1)
    assert one_of(gone, DissolveFormation).formation_id == "f1"
    assert all_of(gone, LaunchNode) == []
    assert [v.pipeline_id for v in cluster.view.pipelines()] == ["pipeline-2"]
    taken = one_of(cluster.node_gone(launched, "", "exit", 1.2), LoadStage)
    assert (taken.node_id, taken.layers) == ("node-1", WHOLE), "it idles"


def test_a_node_that_starts_takes_the_place_the_plan_has_for_it() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)  # node-3 starts
    actions = cluster.plan_ready(planned({"node-3": WHOLE}, number=2), 1.1)
    assert all_of(actions, LaunchNode) == []
    assert one_of(cluster.register(facts("node-3"), 2.0), LoadStage).layers == WHOLE


def test_a_restart_in_mid_change_goes_on_with_the_change() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, {"c": FRONT, "d": BACK})
    plan = planned({"a": FIRST, "b": REST}, {"c": FRONT, "d": BACK}, number=2)
    cluster.plan_ready(plan, 1.0)
    loaded(cluster, "a", FIRST, 1.1)
    loaded(cluster, "b", REST, 1.2)
    again = restarted(cluster)
    actions = again.start(50.0)
    assert one_of(actions, DrainFormation).formation_id == "f1"
    assert again.plan == cluster.plan
    carry_out(again, actions, 50.1)
    assert {r.pipeline_id: r.formation_id for r in again.routes()[1]} == {
        "pipeline-2": "f2",
        "pipeline-3": "g1",
    }


def test_who_is_in_a_formation_that_is_no_more_is_told_so() -> None:
    cluster = serving({"a": WHOLE}, idle=("b",))
    assert beat(cluster, "b", "f0", 1.0) == []
    told = one_of(beat(cluster, "b", "f0", 1.2), DissolveFormation)
    assert (told.formation_id, told.members[0].incarnation) == ("f0", "i-b")
    assert beat(cluster, "b", "", 1.4) == []


def test_members_that_do_not_form_twice_are_asked_what_they_hold() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 1.0)
    cluster.register(facts("node-3"), 1.0)
    form = one_of(loaded(cluster, "node-3", BACK, 1.0), FormPipeline)
    assert all_of(cluster.form_failed(form.formation_id, "not loaded", 1.1), LoadStage) == []
    form = one_of(cluster.tick(2.0), FormPipeline)
    loads = all_of(cluster.form_failed(form.formation_id, "not loaded", 2.1), LoadStage)
    assert [load.node_id for load in loads] == ["node-1", "node-3"]


@pytest.mark.parametrize("how", ["noticed", "lost"])
def test_a_node_named_by_the_plan_that_is_not_to_be_had_is_stood_in_for(how: str) -> None:
    cluster = ready(PATIENT)
    if how == "noticed":
        cluster.interrupt("node-2", 600.0, False, 0.5)
    else:
        cluster.node_gone("node-2", "i-node-2", "exit", 0.5)
    cluster.register(facts("node-3"), 0.6)
    carry_out(cluster, loaded(cluster, "node-3", BACK, 0.7), 0.7)
    before = cluster.routes()[1]
    carry_out(cluster, cluster.plan_ready(planned(PAIR, number=2), 1.0), 1.0)
    assert running(cluster)["pipeline-1"] == [("node-1", FRONT), ("node-3", BACK)]
    assert before == cluster.routes()[1]


# Nodes that prepare while they serve


def preparing(*, settings: ClusterSettings = ALONE) -> Prompt:
    """a and b serve in halves, and are asked for other parts for the plan of number 2."""
    cluster = serving({"a": FRONT, "b": BACK}, settings=settings)
    actions = cluster.plan_ready(planned({"a": FIRST, "b": REST}, number=2), 1.0)
    loads = [(load.node_id, load.layers) for load in all_of(actions, LoadStage)]
    assert loads == [("a", FIRST), ("b", REST)]
    assert all_of(actions, DrainFormation) == []
    return cluster


def states(cluster: Prompt) -> set[NodeState]:
    return {view.state for view in cluster.view.nodes()}


def test_what_serves_does_so_until_its_nodes_have_prepared_and_then_the_next_forms_at_once() -> (
    None
):
    cluster = preparing()
    (before,) = cluster.view.heads(1.0)
    assert states(cluster) == {NodeState.READY}
    assert all_of(loaded(cluster, "a", FIRST, 2.0, kv_blocks=40), DrainFormation) == []
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    drain = one_of(loaded(cluster, "b", REST, 3.0, kv_blocks=50), DrainFormation)
    assert drain.formation_id == "f1"
    (head,) = cluster.view.heads(3.0)
    assert head.numerics_class == before.numerics_class
    actions = cluster.drained("f1", 1, 3.1)
    form = one_of(actions, FormPipeline)
    assert [member.layers for member in form.members] == [FIRST, REST]
    assert form.kv_blocks == 40, "what the next stages have room for, not those that serve"
    assert all_of(actions, LoadStage) == []


def test_who_is_moved_waits_for_what_follows_until_it_serves_or_for_a_while() -> None:
    def switching(now_s: float) -> bool:
        return any(head.switching for head in cluster.view.heads(now_s))

    for formed in (True, False):
        cluster = serving({"a": FRONT, "b": BACK}, {"c": WHOLE})
        cluster.plan_ready(planned({"a": FIRST, "b": REST}, {"c": WHOLE}, number=2), 1.0)
        loaded(cluster, "a", FIRST, 1.0)
        assert not switching(1.0)
        loaded(cluster, "b", REST, 1.1)
        assert switching(1.1)
        form = one_of(cluster.drained("f1", 1, 1.2), FormPipeline)
        assert switching(1.2)
        if formed:
            cluster.formed(form.formation_id, 1.3)
        assert switching(1.3) is not formed
        assert not switching(1.1 + ALONE.switch_s)


def test_the_class_of_what_serves_is_told_and_not_of_what_its_head_prepares() -> None:
    cluster = preparing()
    loaded(cluster, "a", FIRST, 2.0, numerics_class="b")
    assert [head.numerics_class for head in cluster.view.heads(2.0)] == ["a"]
    again = Prompt.recover(ALONE, drawer(), cluster.saved, 50.0, 50.0)
    assert [head.numerics_class for head in again.view.heads(50.0)] == ["a"]


def test_arithmetic_comes_while_the_pipeline_that_has_it_takes_nothing_new() -> None:
    cluster = serving({"a": FRONT, "b": BACK}, settings=ALONE)
    (head,) = cluster.view.heads(1.0)
    assert cluster.view.coming() == frozenset()
    cluster.node_gone("a", "i-a", "exit", 2.0)
    cluster.node_gone("b", "i-b", "exit", 2.0)
    assert cluster.view.coming() == {(head.route.model, head.numerics_class)}


def test_what_a_plan_has_anew_is_of_the_arithmetic_of_its_nodes() -> None:
    cluster = preparing()
    assert {numerics_class for _, numerics_class in cluster.view.coming()} == {"a"}


def test_what_has_no_room_beside_what_serves_is_fetched_and_loaded_behind_the_switch() -> None:
    cluster = preparing()
    assert said(loaded(cluster, "a", FIRST, 2.0, kv_blocks=0, held=False)) == ["stage_fetched"]
    assert all_of(cluster.tick(2.1), LoadStage) == []
    drain = one_of(loaded(cluster, "b", REST, 3.0), DrainFormation)
    loads = all_of(cluster.drained(drain.formation_id, 1, 3.1), LoadStage)
    assert [(load.node_id, load.layers) for load in loads] == [("a", FIRST)]
    form = one_of(loaded(cluster, "a", FIRST, 3.2, kv_blocks=30), FormPipeline)
    assert form.kv_blocks == 30


def test_a_node_that_has_no_room_though_it_serves_no_more_has_failed_to_load() -> None:
    cluster = preparing()
    for node_id, layers in (("a", FIRST), ("b", REST)):
        loaded(cluster, node_id, layers, 2.0, held=False)
    cluster.drained("f1", 1, 2.1)
    for attempt in range(3):
        assert said(loaded(cluster, "a", FIRST, 3.0 + 10 * attempt, held=False)) == ["load_failed"]
        assert all_of(cluster.tick(3.0 + 10 * attempt), LoadStage) == []
        assert one_of(cluster.tick(9.0 + 10 * attempt), LoadStage).node_id == "a"


def test_a_newer_plan_wants_another_next_stage_of_a_node_that_loads() -> None:
    cluster = preparing()
    actions = cluster.plan_ready(planned({"a": WHOLE}, number=3), 1.5)
    assert [(load.node_id, load.layers) for load in all_of(actions, LoadStage)] == [("a", WHOLE)]
    assert loaded(cluster, "a", FIRST, 1.6) == [], "nobody waits for it any more"
    assert load_failed(cluster, "a", FIRST, 1.6, "superseded") == []
    assert one_of(loaded(cluster, "a", WHOLE, 1.7), DrainFormation).formation_id == "f1"


def test_a_newer_plan_that_wants_what_serves_after_all_asks_for_its_stages_again() -> None:
    cluster = preparing()
    loaded(cluster, "a", FIRST, 1.2)
    actions = cluster.plan_ready(planned({"a": FRONT, "b": BACK}, number=3), 1.5)
    loads = [(load.node_id, load.layers) for load in all_of(actions, LoadStage)]
    assert loads == [("a", FRONT), ("b", BACK)], "or they would go with their formation"
    carry_out(cluster, actions, 1.6)
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    cluster.node_gone("b", "i-b", "exit", 2.0)
    actions = cluster.register(facts("b", "i-again"), 2.1)
    assert one_of(actions, LoadStage).node_id == "b"


def test_a_restart_in_mid_preparation_asks_again_and_hands_over_no_sooner() -> None:
    cluster = preparing()
    loaded(cluster, "a", FIRST, 1.2)
    again = restarted(cluster)
    actions = again.start(50.0)
    assert [(load.node_id, load.layers) for load in all_of(actions, LoadStage)] == [("b", REST)]
    assert all_of(actions, DrainFormation) == []
    assert one_of(loaded(again, "b", REST, 50.1), DrainFormation).formation_id == "f1"


def test_a_node_that_served_and_prepares_is_no_failed_launch_to_the_next_controller() -> None:
    cluster = ready(PATIENT)
    cluster.plan_ready(planned({"node-1": FIRST, "node-2": REST}, number=2), 1.0)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 50.0, 50.0)
    again.start(50.0)
    assert one_of(again.node_gone("node-2", "i-node-2", "exit", 50.1), LaunchNode)


def test_a_node_lost_in_mid_preparation_leaves_its_seat_to_another() -> None:
    cluster = preparing()
    loaded(cluster, "a", FIRST, 1.2)
    gone = cluster.node_gone("b", "i-b", "exit", 1.3)
    assert one_of(gone, DissolveFormation).formation_id == "f1"
    assert cluster.routes()[1] == ()
    assert one_of(cluster.register(facts("c"), 2.0), LoadStage).layers == REST
    form = one_of(loaded(cluster, "c", REST, 2.5), FormPipeline)
    assert [member.node_id for member in form.members] == ["a", "c"]


def test_a_node_that_serves_is_lost_as_soon_as_ever_while_it_prepares() -> None:
    impatient = replace(ALONE, node_lost_s=1.0, empty_node_lost_s=10.0)
    cluster = preparing(settings=impatient)
    lost = []
    for tenths in range(11, 70):  # the first gap is as a restart: nobody is lost for three seconds
        beat(cluster, "a", "f1", tenths / 10)
        if tenths <= 45:
            beat(cluster, "b", "f1", tenths / 10)
        lost += [kind for kind in said(cluster.tick(tenths / 10)) if kind == "node_lost"]
    assert lost == ["node_lost"]


def test_a_load_that_fails_beside_what_serves_is_tried_again_and_nothing_is_handed_over() -> None:
    cluster = preparing()
    loaded(cluster, "a", FIRST, 1.2)
    assert said(load_failed(cluster, "b", REST, 1.3)) == ["load_failed"]
    assert cluster.tick(1.4) == []
    assert one_of(cluster.tick(1.8), LoadStage).node_id == "b"
    assert one_of(loaded(cluster, "b", REST, 2.0), DrainFormation).formation_id == "f1"


def test_what_a_node_refuses_for_good_keeps_what_serves_serving() -> None:
    cluster = preparing()
    assert cluster.view.busy
    loaded(cluster, "a", FIRST, 1.2)
    load_failed(cluster, "b", REST, 1.3, "1 byte is lacking", permanent=True)
    assert not cluster.view.busy, "another plan may be asked for"
    for now_s in (2.0, 100.0, 1e5):
        assert cluster.tick(now_s) == []
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    assert (cluster.view.faults()[0].cause, cluster.view.unusable()) == ("1 byte is lacking", "")


def test_a_node_that_cannot_load_its_next_stage_serves_on_until_another_has() -> None:
    cluster = ready(PATIENT)
    cluster.plan_ready(planned({"node-1": FIRST, "node-2": REST}, number=2), 1.0)
    loaded(cluster, "node-1", FIRST, 1.1)
    now_s = 1.1
    for _ in range(PATIENT.load_attempts):
        actions = load_failed(cluster, "node-2", REST, now_s)
        now_s += 10.0
        actions += cluster.tick(now_s)
    launched = one_of(actions, LaunchNode).node_id
    assert all_of(actions, TerminateNode) == []
    assert [route.formation_id for route in cluster.routes()[1]] == ["f1"]
    cluster.register(facts(launched), now_s)
    actions = loaded(cluster, launched, REST, now_s)
    assert one_of(actions, DrainFormation).formation_id == "f1"
    done = carry_out(cluster, actions, now_s)
    assert one_of(done, TerminateNode) == TerminateNode("node-2")
    assert running(cluster) == {"pipeline-2": [("node-1", FIRST), (launched, REST)]}
