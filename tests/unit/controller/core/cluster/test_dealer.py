"""What the provider says reaches market and cluster alike."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import Action, LaunchNode, LogEvent, ShunOffer
from services.controller.core.cluster.dealer import Dealer
from services.controller.core.cluster.market import (
    OVER_BUDGET,
    LaunchFailed,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from tests.unit.controller.small_cluster import PATIENT, SHAPE, all_of, facts, one_of, ready, said

SPOT = Offer("spot", "small", SHAPE, count=2, price_per_hour=0.5, spot=True)
FIRM = Offer("firm", "small", SHAPE, count=9, price_per_hour=1.0)


class Deals(Dealer):
    """A dealer whose words bring the cluster's actions."""

    def __init__(self) -> None:
        self.cluster = ready(replace(PATIENT, budget_per_hour=2.1))
        super().__init__(self.cluster.core, shun_offer_s=30.0)
        assert said(self.offered((SPOT, FIRM))) == ["offers_changed"]

    def hear(self, event: ProviderEvent, now_s: float) -> list[Action]:
        return [*super().hear(event, now_s), *self.cluster.tick(now_s)]


def test_a_launch_is_of_the_offer_that_is_named_or_of_the_cheapest_of_its_shape() -> None:
    found = Deals()
    assert found.order(LaunchNode("a", SHAPE, "firm"), 0.0) == FIRM
    assert found.order(LaunchNode("b", SHAPE), 0.0) == SPOT
    assert (found.market.running("firm"), found.market.running("spot")) == (1, 1)


def test_where_nothing_is_to_be_had_the_cluster_hears_it_at_once() -> None:
    found = Deals()
    launch = one_of(found.hear(NodeGone("node-2", "exit"), 1.0), LaunchNode)
    found.offered(())
    assert found.order(launch, 1.0) is None
    actions = found.cluster.tick(1.0)
    (lost,) = [event for event in all_of(actions, LogEvent) if event.kind == "node_lost"]
    assert (lost.node_id, lost.attributes["cause"]) == (launch.node_id, "no capacity")


def test_an_offer_that_said_no_is_left_alone_for_as_long_as_it_said() -> None:
    found = Deals()
    launch = one_of(found.hear(NodeGone("node-2", "exit"), 1.0), LaunchNode)
    assert found.order(launch, 1.0) == SPOT
    found.hear(LaunchFailed(launch.node_id, "no capacity", 10.0), 2.0)
    assert found.market.running("spot") == 0
    assert found.order(LaunchNode("b", SHAPE, "spot"), 11.9) == FIRM
    assert found.order(LaunchNode("c", SHAPE, "spot"), 12.0) == SPOT


def test_that_an_offer_refuses_again_and_again_is_told_once() -> None:
    found, told, now_s = Deals(), list[Action](), 0.0
    for number in range(6):
        assert found.order(LaunchNode(f"n-{number}", SHAPE, "spot"), now_s) == SPOT
        actions = found.hear(LaunchFailed(f"n-{number}", "no capacity", 10.0), now_s)
        told += [event for event in all_of(actions, LogEvent) if event.kind == "offer_refuses"]
        now_s = found.market.shut()["spot"]
    assert now_s == 10.0 * (1 + 2 + 4 + 8 + 16 + 32)
    attributes = {"offer": "spot", "reason": "no capacity", "pause_s": "20"}
    assert told == [LogEvent("offer_refuses", "n-1", attributes=attributes)]
    found.order(LaunchNode("a", SHAPE, "spot"), now_s)
    found.found(facts("a"), "spot")
    found.order(LaunchNode("b", SHAPE, "spot"), now_s)
    found.hear(LaunchFailed("b", "no capacity", 10.0), now_s)
    assert found.market.shut()["spot"] == now_s + 10.0, "a node came of it meanwhile"


def test_a_node_that_never_came_and_that_nobody_knows_takes_up_no_offer() -> None:
    found = Deals()
    found.order(LaunchNode("a", SHAPE), 0.0)
    assert found.market.running("spot") == 1
    found.over("a")
    assert found.market.running("spot") == 0


def test_what_runs_and_is_ordered_keeps_to_the_budget() -> None:
    found = Deals()
    for name, offer in (("a", FIRM), ("b", SPOT), ("c", SPOT)):
        assert found.order(LaunchNode(name, SHAPE, offer.offer_id), 0.0) == offer
    launch = one_of(found.hear(NodeGone("node-2", "exit"), 1.0), LaunchNode)
    assert found.order(launch, 1.0) is None
    actions = found.cluster.tick(1.0)
    assert all_of(actions, LogEvent)[0].attributes["cause"] == OVER_BUDGET


def test_an_offer_that_sends_something_else_is_left_alone() -> None:
    found = Deals()
    found.order(LaunchNode("a", SHAPE, "spot"), 0.0)
    assert found.found(facts("a"), "spot") == []
    other = replace(facts("a"), shape=replace(SHAPE, relative_speed=0.5))
    actions = found.found(other, "spot")
    assert said(actions) == ["node_differs"]
    found.shun(one_of(actions, ShunOffer).node_id, 1.0)
    assert found.order(LaunchNode("b", SHAPE, "spot"), 30.9) == FIRM
    assert found.order(LaunchNode("c", SHAPE, "spot"), 31.0) == SPOT


def test_more_capacity_has_refused_launches_tried_again() -> None:
    found = Deals()
    launch = one_of(found.hear(NodeGone("node-2", "exit"), 1.0), LaunchNode)
    found.hear(LaunchFailed(launch.node_id, "no capacity"), 1.1)
    actions = found.hear(OffersChanged((replace(SPOT, count=7), replace(FIRM, count=-1))), 1.2)
    assert said(actions)[:2] == ["offers_changed", "offers_dropped"]
    assert one_of(actions, LaunchNode)


@pytest.mark.parametrize(
    ("notice", "error"),
    [
        (NodeNotice("node-1", nan, NoticeKind.SPOT), InvalidArgument),
        (NodeNotice("nobody", 9.0, NoticeKind.SPOT), NotFound),
    ],
)
def test_a_notice_that_counts_for_nothing_says_why(
    notice: NodeNotice, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Deals().hear(notice, 1.0)


def test_what_is_likely_is_advice_and_no_notice() -> None:
    found = Deals()
    actions = found.hear(NodeNotice("node-2", nan, NoticeKind.REBALANCE), 1.0)
    assert said(actions) == ["replacement_advised", "node_launched"]
    assert found.cluster.view.deadlines_s() == {}
    assert found.hear(NodeNotice("node-2", 0.0, NoticeKind.REBALANCE), 2.0) == []
    (noticed,) = all_of(found.hear(NodeNotice("node-2", 60.0, NoticeKind.SPOT), 3.0), LogEvent)
    assert noticed.attributes == {"notice_s": "57", "kind": "spot"}
