from dataclasses import replace
from itertools import count

import pytest

from services.common.generation import LayerRange
from services.common.nodes import NodeFacts, NodeShape, StageSpec
from services.controller.core.cluster.actions import (
    Action,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    NodeState,
    TerminateNode,
)
from services.controller.core.cluster.faults import FaultKind
from services.controller.core.cluster.market import NO_CAPACITY, Offer
from services.controller.core.cluster.plan import PlannedStage
from services.controller.core.cluster.question import Wishes, question
from services.controller.core.cluster.replanning import Ask, Cause
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PAIR,
    PATIENT,
    SHAPE,
    Prompt,
    all_of,
    drawer,
    facts,
    load_failed,
    loaded,
    one_of,
    planned,
    ready,
    said,
)

ONE = replace(PATIENT, spares=1)
SPOT = Offer("spot", "big", SHAPE, count=9, price_per_hour=0.4, spot=True)
RISKY = replace(SPOT, offer_id="risky", interruptions_per_hour=2.0)
SAFE = Offer("safe", "big", SHAPE, count=9, price_per_hour=1.0)
FREE = Offer("free", "own", SHAPE, count=99)


def offered(cluster: Prompt, *offers: Offer, now_s: float = 1.0, **on: str) -> list[Action]:
    """These are offered from now on; `on`: what node_1 and node_2 run on."""
    cluster.market.update(offers)
    for name, offer_id in on.items():
        cluster.market.found(name.replace("_", "-"), offer_id)
    return cluster.offers_changed(now_s)


def warm(settings=ONE, *, front: str = "risky", back: str = "spot", room: int = 9) -> Prompt:
    """A pipeline of node-1 and node-2, and node-3 that holds as many stages as it has room for, the
    likelier first."""
    cluster = ready(settings)
    offered(cluster, SPOT, RISKY, SAFE, node_1=front, node_2=back)
    answered(cluster, came(cluster, "node-3", "spot", 2.0), 3.0, room=room)
    return cluster


def answered(
    cluster: Prompt, actions: list[Action], now_s: float, *, room: int = 9
) -> list[Action]:
    """What follows once nodes with so much room have done what they are to load; with that."""
    followed = list(actions)
    for load in all_of(actions, LoadStage):
        held = load.stages[:room]
        spec = StageSpec(load.layers, load.tp_degree)
        beside = [one for one in held if one != spec]
        more = loaded(cluster, load.node_id, load.layers, now_s, held=spec in held, beside=beside)
        followed += answered(cluster, more, now_s, room=room)
    return followed


def came(cluster: Prompt, node_id: str, offer_id: str, now_s: float) -> list[Action]:
    cluster.market.found(node_id, offer_id)
    return cluster.register(facts(node_id), now_s)


def gone(cluster: Prompt, node_id: str, now_s: float) -> list[Action]:
    cluster.market.ended(node_id)
    return cluster.node_gone(node_id, f"i-{node_id}", "exit", now_s)


def state_of(cluster: Prompt, node_id: str) -> NodeState:
    return next(view.state for view in cluster.view.nodes() if view.node_id == node_id)


def held_by_spares(cluster: Prompt) -> dict[str, tuple[LayerRange, ...]]:
    return {spare.node_id: spare.held for spare in cluster.view.spares()}


def test_none_is_kept_where_none_is_asked_for() -> None:
    cluster = ready(PATIENT)
    assert all_of(offered(cluster, SPOT, node_1="spot", node_2="spot"), LaunchNode) == []
    assert cluster.view.spares() == ()


def test_one_is_launched_once_the_plan_is_carried_out_and_holds_the_likelier_stage() -> None:
    cluster = ready(ONE)
    launch = one_of(offered(cluster, SPOT, SAFE, node_1="safe", node_2="spot"), LaunchNode)
    assert launch == LaunchNode("node-3", SHAPE, "spot")
    assert state_of(cluster, "node-3") is NodeState.STARTING
    load = one_of(came(cluster, "node-3", "spot", 2.0), LoadStage)
    assert (load.node_id, load.layers) == ("node-3", BACK)  # node-2 is on spot, node-1 is not
    assert state_of(cluster, "node-3") is NodeState.LOADING
    assert load.stages == (StageSpec(BACK),)
    actions = loaded(cluster, "node-3", BACK, 3.0)
    assert said(actions) == ["stage_loaded"]
    assert one_of(actions, LoadStage).stages == (StageSpec(BACK), StageSpec(FRONT))
    assert state_of(cluster, "node-3") is NodeState.SPARE, "it may take a seat already"
    assert held_by_spares(cluster) == {"node-3": (BACK,)}
    assert said(answered(cluster, actions, 4.0)) == ["stage_loaded", "stage_loaded"]
    assert held_by_spares(cluster) == {"node-3": (BACK, FRONT)}
    assert cluster.view.spares_cost_per_hour() == pytest.approx(0.4)
    assert cluster.tick(100.0) == []


def test_a_hazard_that_is_told_weighs_more_than_how_many_are_on_spot() -> None:
    assert held_by_spares(warm(front="risky", back="spot")) == {"node-3": (FRONT, BACK)}
    assert held_by_spares(warm(front="spot", back="risky")) == {"node-3": (BACK, FRONT)}


def test_where_memory_is_lacking_it_holds_the_likelier_and_says_what_it_lacks() -> None:
    cluster = warm(front="spot", back="risky", room=1)
    (spare,) = cluster.view.spares()
    assert (spare.model_id, spare.held, spare.lacks) == ("m", (BACK,), (FRONT,))
    assert spare.price_per_hour == pytest.approx(0.4)
    assert cluster.tick(100.0) == [], "it is not tried again as things are"
    actions = cluster.offers_changed(101.0)
    assert all_of(actions, LoadStage) == []
    # The other one becomes the likelier: it has memory first from now on.
    steady = replace(RISKY, interruptions_per_hour=0.1)
    actions = offered(cluster, replace(SPOT, interruptions_per_hour=1.0), steady, now_s=102.0)
    assert one_of(actions, LoadStage).stages == (StageSpec(FRONT), StageSpec(BACK))
    assert held_by_spares(cluster) == {"node-3": ()}, "it may have to make room at once"
    answered(cluster, actions, 103.0, room=1)
    assert held_by_spares(cluster) == {"node-3": (FRONT,)}
    assert cluster.tick(200.0) == []


def test_a_stage_that_more_pipelines_have_comes_first() -> None:
    settings = replace(ONE, initial=(SHAPE,) * 6, expected_nodes=6, pipelines=3)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.market.update([FREE])
    for index in range(1, 7):
        cluster.register(facts(f"node-{index}"), 0.0)
    early, late = LayerRange(0, 10), LayerRange(10, 30)
    stages = [(early, late), (FRONT, BACK), (FRONT, BACK)]
    pairs = [
        {f"node-{2 * i + 1}": head, f"node-{2 * i + 2}": tail}
        for i, (head, tail) in enumerate(stages)
    ]
    cluster.plan_ready(planned(*pairs), 0.0)
    for pair in pairs:
        for node_id, layers in pair.items():
            for form in all_of(loaded(cluster, node_id, layers, 0.0), FormPipeline):
                launches = all_of(cluster.formed(form.formation_id, 0.0), LaunchNode)
    assert [launch.node_id for launch in launches] == ["node-7"]
    assert one_of(cluster.register(facts("node-7"), 1.0), LoadStage).layers == FRONT


@pytest.mark.parametrize(("lost", "layers"), [("node-1", FRONT), ("node-2", BACK)])
def test_a_lost_nodes_stage_is_kept_alone_and_nothing_is_loaded_or_started_for_it(
    lost: str, layers: LayerRange
) -> None:
    cluster = warm()
    actions = gone(cluster, lost, 5.0)
    kept = one_of(actions, LoadStage)
    assert (kept.node_id, kept.stages) == ("node-3", (StageSpec(layers),))
    assert all_of(actions, LaunchNode) + all_of(actions, FormPipeline) == []
    assert cluster.view.spares() == ()
    told = loaded(cluster, "node-3", layers, 5.1, kv_blocks=40)
    assert said(told) == ["stage_kept"]
    form = one_of(told, FormPipeline)
    assert "node-3" in [member.node_id for member in form.members]
    assert form.kv_blocks == min(40, 64 if lost == "node-2" else 32), "of the stage alone"
    assert one_of(cluster.formed(form.formation_id, 5.2), LaunchNode).node_id == "node-4"


def test_one_that_holds_its_only_stage_forms_at_once() -> None:
    cluster = Prompt(replace(ONE, initial=(SHAPE,), expected_nodes=1), drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.market.update([FREE])
    cluster.register(facts("node-1"), 0.0)
    whole = LayerRange(0, 30)
    cluster.plan_ready(planned({"node-1": whole}), 0.0)
    form = one_of(loaded(cluster, "node-1", whole, 0.1), FormPipeline)
    launch = one_of(cluster.formed(form.formation_id, 0.2), LaunchNode)
    answered(cluster, came(cluster, launch.node_id, "free", 1.0), 2.0)
    assert held_by_spares(cluster) == {launch.node_id: (whole,)}
    actions = gone(cluster, "node-1", 5.0)
    form = one_of(actions, FormPipeline)
    assert [member.node_id for member in form.members] == [launch.node_id]
    assert all_of(actions, LoadStage) == []


def test_one_that_lacks_the_stage_loads_it_and_nothing_is_started() -> None:
    cluster = warm(front="risky", room=1)
    actions = gone(cluster, "node-2", 5.0)
    assert one_of(actions, LoadStage).node_id == "node-3"
    assert one_of(actions, LoadStage).stages == (StageSpec(BACK),)
    assert all_of(actions, LaunchNode) == []
    told = loaded(cluster, "node-3", BACK, 6.0)
    assert said(told) == ["stage_loaded"]
    assert [m.node_id for m in one_of(told, FormPipeline).members] == ["node-1", "node-3"]


def test_one_that_starts_is_taken_before_another_is_ordered() -> None:
    cluster = ready(ONE)
    offered(cluster, SPOT, node_1="spot", node_2="spot")
    actions = gone(cluster, "node-2", 2.0)
    assert (all_of(actions, LaunchNode), said(actions)[-1]) == ([], "stage_taken")
    assert one_of(came(cluster, "node-3", "spot", 3.0), LoadStage).layers == BACK


@pytest.mark.parametrize(
    ("room", "kept"),
    [(1, [(FRONT,), (BACK,), (FRONT,)]), (2, [(FRONT, BACK)] * 3)],
)
def test_several_hold_different_stages_before_two_hold_the_same(
    room: int, kept: list[tuple[LayerRange, ...]]
) -> None:
    cluster = ready(replace(PATIENT, spares=3))
    actions = offered(cluster, FREE)
    for number in count(3):
        launches = all_of(actions, LaunchNode)
        if not launches:
            break
        assert [launch.node_id for launch in launches] == [f"node-{number}"]  # one at a time
        actions = came(cluster, f"node-{number}", "free", 2.0)
        answered(cluster, actions, 3.0, room=room)
    held = held_by_spares(cluster)
    assert [held[name] for name in sorted(held)] == kept
    # Two stages are lost at once: each is taken by one that holds it.
    actions = cluster.node_gone("node-1", "i-node-1", "exit", 5.0)
    actions += cluster.node_gone("node-2", "i-node-2", "exit", 5.0)
    keeps = all_of(actions, LoadStage)
    assert len({load.node_id for load in keeps}) == 2
    told = answered(cluster, actions, 6.0)
    assert said(told).count("stage_kept") == 2
    assert len(one_of(told, FormPipeline).members) == 2


def test_a_seat_leaves_what_another_ones_stage_is_to_that_one() -> None:
    settings = replace(ONE, initial=(SHAPE,) * 4, expected_nodes=4, pipelines=2)
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    for index in range(1, 5):
        cluster.register(facts(f"node-{index}"), 0.0)
    pairs = [PAIR, {"node-3": FRONT, "node-4": BACK}]
    cluster.market.update([replace(RISKY, count=1), SPOT])
    for node_id, offer_id in {"node-1": "spot", "node-4": "risky"}.items():
        cluster.market.found(node_id, offer_id)
    cluster.plan_ready(planned(*pairs), 0.0)
    for pair in pairs:
        for node_id, layers in pair.items():
            for form in all_of(loaded(cluster, node_id, layers, 0.0), FormPipeline):
                cluster.formed(form.formation_id, 0.0)
    assert one_of(came(cluster, "node-5", "spot", 1.0), LoadStage).layers == BACK
    loaded(cluster, "node-5", BACK, 1.5)
    loaded(cluster, "node-5", FRONT, 1.6, held=False, beside=[StageSpec(BACK)])
    cluster.node_gone("node-4", "i-node-4", "exit", 2.0)
    assert [p.stages[1].node_id for p in cluster.view.pipelines()] == ["node-2", "node-5"]


def test_a_node_that_is_noticed_hands_over_to_a_loaded_spare_at_once() -> None:
    cluster = warm(front="risky")
    kept = one_of(cluster.interrupt("node-1", 0.2, False, 5.0), LoadStage)
    assert kept.stages == (StageSpec(FRONT),)
    actions = loaded(cluster, "node-3", FRONT, 5.05)
    assert "replacement_ready" in said(actions)
    drain = one_of(actions, DrainFormation)
    form = one_of(cluster.drained(drain.formation_id, 1, 5.1), FormPipeline)
    assert [member.node_id for member in form.members] == ["node-3", "node-2"]


def test_a_spare_that_is_about_to_go_is_not_taken_and_another_takes_its_place() -> None:
    cluster = warm()
    actions = cluster.interrupt("node-3", 30.0, False, 5.0)
    assert one_of(actions, LaunchNode).node_id == "node-4"
    assert "node-3" not in held_by_spares(cluster)
    launches = all_of(gone(cluster, "node-1", 6.0), LaunchNode)
    assert launches == []  # node-4 starts, and is nearest
    assert {stage.node_id for p in cluster.view.pipelines() for stage in p.stages} == {
        "node-4",
        "node-2",
    }


def test_one_that_is_lost_is_replaced_behind_a_pause_that_grows() -> None:
    cluster = ready(ONE)
    offered(cluster, FREE)
    starts, failed_s = [], 1.0
    now_s = 1.0
    while now_s < 120.0:
        now_s += 0.1
        starting = [v.node_id for v in cluster.view.nodes() if v.state is NodeState.STARTING]
        for node_id in starting:
            cluster.launch_failed(node_id, NO_CAPACITY, now_s)
            failed_s = now_s
        starts += all_of(cluster.tick(now_s), LaunchNode)
    assert 4 <= len(starts) <= 10, "0.5, 1, 2, 4 ... 30 s"
    assert failed_s > 60.0
    (fault,) = cluster.view.faults()
    assert (fault.kind, fault.cause, fault.pipeline_id) == (FaultKind.SPARE, NO_CAPACITY, "")
    retried = one_of(cluster.offers_changed(now_s), LaunchNode)  # there may be capacity by now
    cluster.register(facts(retried.node_id), now_s + 1.0)
    loaded(cluster, retried.node_id, FRONT, now_s + 2.0)
    cluster.tick(now_s + 2.0 + ONE.stable_s)
    assert cluster.view.faults() == ()


def test_a_launch_that_comes_to_nothing_takes_nothing_from_the_plans_own() -> None:
    cluster = ready(ONE)
    offered(cluster, FREE)
    cluster.launch_failed("node-3", NO_CAPACITY, 1.0)
    launch = one_of(gone(cluster, "node-2", 1.1), LaunchNode)
    assert launch.node_id == "node-4"
    for now_s in (2.0, 3.0, 60.0):
        assert all_of(cluster.tick(now_s), LaunchNode) == [], "the plan lacks a node yet"


def test_one_that_stood_for_long_and_is_lost_is_replaced_at_once() -> None:
    cluster = warm()
    assert one_of(gone(cluster, "node-3", 3.0 + ONE.stable_s), LaunchNode).node_id == "node-4"


@pytest.mark.parametrize(("budget", "launched"), [(1.19, 0), (1.2, 1), (0.0, 1)])
def test_none_is_launched_above_the_budget(budget: float, launched: int) -> None:
    cluster = ready(replace(ONE, budget_per_hour=budget))
    actions = offered(cluster, SPOT, node_1="spot", node_2="spot")
    assert len(all_of(actions, LaunchNode)) == launched
    assert len(all_of(cluster.tick(50.0), LaunchNode)) == 0


def test_one_ends_when_prices_rise_above_the_budget_and_when_a_seat_needs_its_money() -> None:
    cluster = warm(replace(ONE, budget_per_hour=2.0))
    dearer = replace(SPOT, price_per_hour=0.9)
    actions = offered(cluster, dearer, replace(RISKY, price_per_hour=0.9), SAFE, now_s=5.0)
    assert one_of(actions, TerminateNode).node_id == "node-3"
    assert cluster.view.spares() == ()


def test_none_is_kept_where_nothing_of_the_plan_may_be_taken_away() -> None:
    cluster = ready(ONE)
    assert all_of(offered(cluster, SAFE, SPOT, node_1="safe", node_2="safe"), LaunchNode) == []
    hazard = replace(SAFE, interruptions_per_hour=0.01)
    assert all_of(offered(cluster, hazard, SPOT, now_s=2.0), LaunchNode) != []
    came(cluster, "node-3", "spot", 3.0)
    assert one_of(offered(cluster, SAFE, SPOT, now_s=4.0), TerminateNode).node_id == "node-3"


def test_it_is_launched_from_what_suits_most_and_costs_least_with_what_it_loses() -> None:
    small = replace(SPOT, offer_id="small", price_per_hour=0.01, shape=NodeShape(1 << 20, 9.0))
    other = replace(SPOT, offer_id="gpu", price_per_hour=0.01, shape=NodeShape(1 << 40, 9.0, "gpu"))
    fast = replace(SPOT, offer_id="fast", shape=NodeShape(1 << 30, 2.0))

    def chosen(*offers: Offer) -> list[str]:
        cluster = ready(ONE)
        return [launch.offer_id for launch in all_of(offered(cluster, *offers), LaunchNode)]

    assert chosen(small, other) == []
    assert chosen(small, other, SAFE, SPOT, RISKY) == ["spot"]
    assert chosen(SAFE, RISKY) == ["safe"]  # three times 0.4 is more than 1.0
    assert chosen(SPOT, fast) == ["fast"]
    assert chosen(replace(SPOT, count=0), SAFE) == ["safe"]


@pytest.mark.parametrize(("count", "kept"), [(1, {"node-3": (FRONT, BACK)}), (0, {})])
def test_spares_survive_a_restart_and_those_that_are_not_wanted_any_more_end(
    count: int, kept: dict[str, tuple[LayerRange, ...]]
) -> None:
    cluster = warm()
    again = Prompt.recover(replace(PATIENT, spares=count), drawer(), cluster.saved, 6.0, 6.0)
    again.market.update([SPOT, RISKY, SAFE])
    actions = again.start(6.0)
    for node_id in ("node-1", "node-2", "node-3"):
        actions += came(again, node_id, "spot", 6.1)
    assert held_by_spares(again) == kept
    assert all_of(actions, LoadStage) == []
    assert [a.node_id for a in all_of(actions, TerminateNode)] == ([] if kept else ["node-3"])
    assert all_of(actions, LaunchNode) == []


def test_a_plan_that_names_it_takes_it_and_the_next_is_launched_behind() -> None:
    cluster = warm()
    plan = planned({"node-1": FRONT, "node-3": BACK}, number=2)
    kept = one_of(cluster.plan_ready(plan, 5.0), LoadStage)
    assert (kept.node_id, kept.stages) == ("node-3", (StageSpec(BACK),))
    assert cluster.view.spares() == ()
    assert state_of(cluster, "node-3") is NodeState.LOADING


def test_one_whose_stage_the_plan_has_no_more_loads_what_it_has() -> None:
    cluster = ready(replace(ONE, initial=(SHAPE,) * 2))
    offered(cluster, FREE)
    came(cluster, "node-3", "free", 2.0)
    loaded(cluster, "node-3", FRONT, 3.0)
    whole = LayerRange(0, 30)
    cluster.plan_ready(planned({"node-1": whole}, number=2), 4.0)
    drain = one_of(loaded(cluster, "node-1", whole, 4.1), DrainFormation)
    form = one_of(cluster.drained(drain.formation_id, 0, 4.2), FormPipeline)
    loads = all_of(cluster.formed(form.formation_id, 5.5), LoadStage)
    assert {load.layers for load in loads} <= {whole}
    assert len(cluster.view.spares()) == 1


def test_one_that_suits_no_stage_is_let_go_and_the_next_waits_longer() -> None:
    cluster = ready(ONE)
    offered(cluster, FREE)
    launched, now_s = [], 2.0
    while now_s < 60.0:
        now_s += 0.1
        for view in cluster.view.nodes():
            if view.state is NodeState.STARTING:
                small = NodeFacts(view.node_id, f"i-{view.node_id}", "x:1", 7, NodeShape(1, 1.0))
                ended = all_of(cluster.register(small, now_s), TerminateNode)
                assert [end.node_id for end in ended] == [view.node_id]
                gone(cluster, view.node_id, now_s)
        launched += all_of(cluster.tick(now_s), LaunchNode)
    assert 4 <= len(launched) <= 9
    (fault,) = cluster.view.faults()
    assert (fault.kind, fault.cause) == (FaultKind.SPARE, "a node suits no stage of the plan")


def test_a_node_that_lost_its_place_and_suits_no_other_makes_room_for_one_that_does() -> None:
    cluster = ready(ONE)
    offered(cluster, FREE, replace(FREE, offer_id="large", shape=NodeShape(1 << 40, 1.0)))
    cluster.register(NodeFacts("node-3", "i-node-3", "x:1", 7, NodeShape(1 << 40, 1.0)), 2.0)
    large = PlannedStage(LayerRange(0, 30), 1, NodeShape(1 << 40, 1.0), "node-3")
    plan = planned({"node-1": FRONT, "node-2": BACK}, number=2)
    pipeline = replace(plan.deployments[0].pipelines[0], stages=(large,))
    plan = replace(plan, deployments=(replace(plan.deployments[0], pipelines=(pipeline,)),))
    actions = answered(cluster, cluster.plan_ready(plan, 3.0), 3.5)
    for form in all_of(actions, FormPipeline):
        actions += cluster.formed(form.formation_id, 4.0)
    drain = one_of([*actions, *cluster.tick(4.1)], DrainFormation)
    actions = cluster.drained(drain.formation_id, 0, 4.2)
    assert {end.node_id for end in all_of(actions, TerminateNode)} == {"node-1", "node-2"}
    assert cluster.view.faults() == ()
    assert one_of(actions, LaunchNode).offer_id == "large"


def test_one_that_cannot_load_is_let_go_and_the_next_waits_longer() -> None:
    cluster = ready(ONE)
    offered(cluster, FREE)
    came(cluster, "node-3", "free", 2.0)
    now_s, actions = 2.0, list[Action]()
    for _ in range(ONE.load_attempts):
        actions += load_failed(cluster, "node-3", FRONT, now_s, "no room")
        now_s += 20.0
        actions += cluster.tick(now_s)
    assert one_of(actions, TerminateNode).node_id == "node-3"
    (fault,) = cluster.view.faults()
    assert (fault.kind, fault.cause) == (FaultKind.SPARE, "no room")


def test_a_node_that_came_by_itself_and_is_kept_is_no_reason_for_another_plan() -> None:
    cluster = ready(replace(ONE, can_launch=False, initial=()))
    assert one_of(cluster.register(facts("guest"), 1.0), LoadStage).layers == FRONT
    assert (cluster.view.guests(), list(held_by_spares(cluster))) == (frozenset(), ["guest"])
    cluster.register(NodeFacts("other", "i-other", "o:1", 7, SHAPE), 2.0)
    assert cluster.view.guests() == {"other"}


def test_spares_are_no_capacity_but_for_what_repairs_a_plan() -> None:
    cluster = warm()

    def asked(improve: bool) -> set[str]:
        ask = Ask((Cause.OFFERS,), improve, (), None)
        goal = cluster.goals.deployed[0]
        asked = question(cluster, cluster.market, ask, Wishes(), goal, None, 5.0)
        return {node.node_id for node in asked.nodes}

    assert asked(True) == {"node-1", "node-2"}
    assert asked(False) == {"node-1", "node-2", "node-3"}


def test_a_model_that_sleeps_keeps_none() -> None:
    cluster = warm()
    actions = cluster.plan_ready(planned(number=2), 5.0)
    actions += cluster.tick(5.1)
    for drain in all_of(actions, DrainFormation):
        actions += cluster.drained(drain.formation_id, 0, 5.2)
    actions += cluster.tick(6.0)
    ended = {action.node_id for action in all_of(actions, TerminateNode)}
    assert (ended, cluster.view.spares()) == ({"node-1", "node-2", "node-3"}, ())


def test_a_node_that_loses_its_place_and_is_kept_is_not_told_to_end() -> None:
    cluster = ready(ONE)
    offered(cluster, replace(FREE, count=0))
    plan = planned({"node-1": LayerRange(0, 30)}, number=2)
    found = cluster.view.difference(plan, 2.0)
    assert (found.freed, found.idle, found.launched) == ((), ("node-2",), {})
