"""What of a plan cannot be filled, what waits for money, who is let go, and a plan of nothing."""

from __future__ import annotations

from dataclasses import replace

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import (
    DrainFormation,
    LaunchNode,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.market import OVER_BUDGET
from services.controller.core.cluster.plan import (
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.replanning import Cause, Lack
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PATIENT,
    SETTINGS,
    SHAPE,
    all_of,
    facts,
    loaded,
    one_of,
    planned,
    ready,
    said,
)

NOTHING = Plan(2, (Deployment(SETTINGS.first.model, "throughput", ()),))


def test_a_seat_whose_like_is_ordered_is_no_lack() -> None:
    cluster = ready(PATIENT)
    actions = cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    assert one_of(actions, LaunchNode).node_id == "node-3"
    assert cluster.view.lacks() == frozenset()
    assert cluster.view.busy


def test_a_seat_whose_launch_is_refused_is_one_until_somebody_sits_there() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    cluster.launch_failed("node-3", "no capacity", 1.0)
    lack = Lack("pipeline-1", 1, refused=True)
    assert cluster.view.lacks() == {lack}
    assert lack.cause is Cause.REFUSED
    assert not cluster.view.busy, "nothing goes on by itself"
    assert one_of(cluster.offers_changed(2.0), LaunchNode).node_id == "node-4"
    assert cluster.view.lacks() == {lack}, "it may be refused again"
    cluster.register(facts("node-4"), 3.0)
    assert cluster.view.lacks() == frozenset()
    cluster.node_gone("node-4", "i-node-4", "killed", 4.0)
    cluster.tick(30.0)
    assert cluster.view.lacks() == frozenset(), "a loss is no refusal"


def test_one_with_notice_is_a_lack_once_its_replacement_is_refused() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 60.0, False, 1.0)
    assert cluster.view.lacks() == frozenset()
    cluster.launch_failed("node-3", "no capacity", 1.0)
    assert cluster.view.lacks() == {Lack("pipeline-1", 1, "node-2", refused=True)}


def test_where_nodes_come_by_themselves_every_vacant_seat_is_one() -> None:
    cluster = ready(replace(PATIENT, can_launch=False, initial=()))
    cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    assert cluster.view.lacks() == {Lack("pipeline-1", 1)}
    cluster.register(facts("node-3"), 2.0)
    assert cluster.view.lacks() == frozenset()


def test_a_launch_that_never_comes_is_a_refusal_and_shuns_its_offer() -> None:
    cluster = ready(replace(PATIENT, launch_timeout_s=60.0))
    cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    actions = cluster.tick(62.0)
    assert one_of(actions, ShunOffer).node_id == "node-3"
    assert TerminateNode("node-3", kill=True) in actions
    assert cluster.view.lacks() == {Lack("pipeline-1", 1, refused=True)}


def test_what_waits_for_money_is_no_lack_and_what_is_replaced_goes_first() -> None:
    cluster = ready(PATIENT)
    bought = PlannedStage(LayerRange(0, 30), shape=SHAPE, offer_id="cheap")
    pipelines = (PlannedPipeline("pipeline-2", (bought,), 50.0),)
    whole = Plan(2, (Deployment(SETTINGS.first.model, "throughput", pipelines),))
    launch = one_of(cluster.plan_ready(whole, 1.0), LaunchNode)
    actions = cluster.launch_failed(launch.node_id, OVER_BUDGET, 1.0)
    assert cluster.view.lacks() == frozenset()
    assert cluster.view.busy
    drain = one_of(actions, DrainFormation)
    done = cluster.drained(drain.formation_id, 0, 1.2)
    ended = {action.node_id for action in all_of(done, TerminateNode)}
    assert ended == {"node-1", "node-2"}
    assert all_of(done, LaunchNode) == [], "they are paid for until they have ended"
    for name in ended:
        cluster.node_gone(name, f"i-{name}", "ended", 1.3)
    assert all_of(cluster.offers_changed(1.4), LaunchNode), "there is money now"


def test_launched_nodes_without_a_place_end_once_every_pipeline_serves() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "killed", 1.0)
    cluster.register(facts("node-3"), 2.0)
    assert "node_returned" in said(cluster.register(facts("node-2"), 2.0))
    actions = loaded(cluster, "node-3", BACK, 3.0)
    assert all_of(actions, TerminateNode) == []
    formed = cluster.formed("f2", 4.0)
    assert [action.node_id for action in all_of(formed, TerminateNode)] == ["node-2"]


def test_a_plan_of_nothing_ends_what_serves_and_a_later_one_begins_anew() -> None:
    cluster = ready(PATIENT)
    drain = one_of(cluster.plan_ready(NOTHING, 1.0), DrainFormation)
    assert cluster.view.asleep() == (SETTINGS.first.model,)
    done = cluster.drained(drain.formation_id, 0, 1.1)
    assert {action.node_id for action in all_of(done, TerminateNode)} == {"node-1", "node-2"}
    assert cluster.routes()[1] == ()
    assert cluster.view.unusable() == ""
    for name in ("node-1", "node-2"):
        cluster.node_gone(name, f"i-{name}", "ended", 1.2)
    assert all_of(cluster.tick(1.3), LaunchNode) == []
    actions = cluster.plan_ready(planned({"?1": FRONT, "?2": BACK}, number=3), 2.0)
    assert len(all_of(actions, LaunchNode)) == 2
    assert cluster.view.asleep() == ()
