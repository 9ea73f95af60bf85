from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.errors import InvalidArgument, ResourceExhausted
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    MAX_NOTICE_S,
    MAX_OFFERS,
    Dropped,
    Market,
    NodeNotice,
    Offer,
    check,
)

SHAPE = NodeShape(1 << 30, 3.0)
SPOT = Offer("spot-a", "big", SHAPE, count=2, price_per_hour=0.4, pool="a", spot=True)
DEMAND = Offer("demand", "big", SHAPE, count=9, price_per_hour=1.0)


def market(*offers: Offer) -> Market:
    found = Market()
    assert found.update(offers).dropped == ()
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offer_id", ""),
        ("offer_id", "x" * 129),
        ("instance_type", "a\nb"),
        ("pool", "\0"),
        ("price_per_hour", nan),
        ("price_per_hour", 0.0),
        ("price_per_hour", -1.0),
        ("price_per_hour", inf),
        ("count", -1),
        ("count", 10_001),
        ("interruptions_per_hour", -0.1),
        ("interruptions_per_hour", nan),
        ("launch_s", 601.0),
        ("relative_speed", nan),
        ("relative_speed", 0.0),
        ("memory_bytes", 0),
    ],
)
def test_an_absurd_offer_is_dropped_by_the_field(field: str, value: Any) -> None:
    if field in ("relative_speed", "memory_bytes"):
        absurd = replace(SPOT, shape=replace(SHAPE, **{field: value}))
    else:
        absurd = replace(SPOT, **{field: value})
    with pytest.raises(InvalidArgument) as refused:
        check(absurd)
    assert refused.value.field == field
    found = Market()
    change = found.update((absurd, DEMAND))
    assert [(drop.offer_id, drop.field) for drop in change.dropped] == [
        (absurd.offer_id[:128], field)
    ]
    assert found.offers() == (DEMAND,)


def test_an_offer_at_each_limit_is_taken() -> None:
    market(replace(SPOT, offer_id="x" * 128, count=10_000, price_per_hour=1e6, launch_s=600.0))
    market(replace(SPOT, count=0, price_per_hour=None, pool=""))


class Counted(Sequence[Offer]):
    """A million offers; it counts how many of them anybody looks at."""

    looked = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: Any) -> Any:
        many = [replace(SPOT, offer_id=f"o-{i}") for i in range(*index.indices(len(self)))]
        self.looked += len(many)
        return many


def test_of_a_million_offers_a_thousand_are_looked_at() -> None:
    many, found = Counted(), Market()
    change = found.update(many)
    assert many.looked == len(found.offers()) == MAX_OFFERS
    assert change.dropped == (Dropped("", "offers", "999000 offers beyond 1000"),)


def test_two_offers_of_one_id_are_one() -> None:
    found = Market()
    change = found.update((SPOT, replace(SPOT, price_per_hour=0.1)))
    assert found.offers() == (SPOT,)
    assert change.dropped[0].field == "offer_id"


def test_what_changed_is_told() -> None:
    found = market(SPOT, DEMAND)
    assert found.update((DEMAND, SPOT)).changed == ()
    assert found.update((replace(SPOT, count=1),)).changed == ("demand", "spot-a")


def test_the_cheapest_open_offer_of_the_very_shape_is_chosen() -> None:
    other = replace(
        SPOT, offer_id="other", price_per_hour=0.1, shape=replace(SHAPE, memory_bytes=5)
    )
    found = market(DEMAND, SPOT, other)
    assert found.choose(SHAPE, 0.0) == SPOT
    for node_id in ("n-1", "n-2"):
        found.launch(node_id, "spot-a")
    assert found.choose(SHAPE, 0.0) == DEMAND
    found.ended("n-1")
    assert found.choose(SHAPE, 0.0) == SPOT
    assert found.choose(NodeShape(7, 1.0), 0.0) is None


def test_the_named_offer_goes_first_while_it_is_to_be_had() -> None:
    found = market(DEMAND, SPOT)
    assert found.named("demand", SHAPE, 0.0) == DEMAND
    assert found.named("", SHAPE, 0.0) == found.named("unheard", SHAPE, 0.0) == SPOT
    found.launch("n-1", "demand")
    found.refused("n-1", 10.0, 0.0)
    assert found.named("demand", SHAPE, 9.0) == SPOT
    assert found.named("demand", SHAPE, 10.0) == DEMAND


def test_at_one_price_spot_goes_before_on_demand_and_no_price_last() -> None:
    same, unknown = replace(DEMAND, price_per_hour=0.4), replace(SPOT, price_per_hour=None)
    assert market(same, SPOT).choose(SHAPE, 0.0) == SPOT
    assert market(unknown, DEMAND).choose(SHAPE, 0.0) == DEMAND


def test_an_offer_that_said_no_is_left_alone_for_a_while() -> None:
    found = market(SPOT, DEMAND)
    found.launch("n-1", "spot-a")
    found.refused("n-1", 5.0, 10.0)
    assert found.running("spot-a") == 0
    assert found.choose(SHAPE, 14.9) == DEMAND
    assert found.choose(SHAPE, 15.0) == SPOT


def test_more_of_an_offer_ends_its_while() -> None:
    found = market(SPOT)
    found.launch("n-1", "spot-a")
    found.refused("n-1", inf, 0.0)
    assert found.choose(SHAPE, 1.0) is None
    assert found.update((replace(SPOT, price_per_hour=0.5),))
    assert found.choose(SHAPE, 1.0) is None
    more = replace(SPOT, count=3)
    found.update((more,))
    assert found.choose(SHAPE, 1.0) == more


@pytest.mark.parametrize("retry_after_s", [0.0, nan, -1.0])
def test_a_refusal_without_a_while_is_over_at_once(retry_after_s: float) -> None:
    found = market(SPOT)
    found.launch("n-1", "spot-a")
    found.refused("n-1", retry_after_s, 0.0)
    assert found.choose(SHAPE, 0.0) == SPOT


def test_what_is_used_up_or_not_offered_is_not_launched() -> None:
    found = market(replace(SPOT, count=1))
    found.launch("n-1", "spot-a")
    found.launch("n-1", "spot-a")
    for offer_id in ("spot-a", "nothing"):
        with pytest.raises(ResourceExhausted, match="no capacity"):
            found.launch("n-2", offer_id)


def test_the_cost_is_that_of_the_nodes_at_the_price_of_now() -> None:
    found = market(SPOT, DEMAND)
    assert (found.cost_per_hour(), found.on_demand_cost_per_hour()) == (0.0, 0.0)
    for node_id, offer_id in (("n-1", "spot-a"), ("n-2", "spot-a"), ("n-3", "demand")):
        found.launch(node_id, offer_id)
    assert found.cost_per_hour() == pytest.approx(1.8)
    assert found.on_demand_cost_per_hour() == pytest.approx(3.0)
    dearer, cheap = replace(SPOT, price_per_hour=0.6), replace(DEMAND, offer_id="cheap")
    found.update((dearer, DEMAND, replace(cheap, price_per_hour=0.9)))
    assert found.cost_per_hour() == pytest.approx(2.2)
    assert found.on_demand_cost_per_hour() == pytest.approx(2.7)


def test_a_node_whose_offer_was_withdrawn_costs_what_it_did() -> None:
    found = market(SPOT, DEMAND)
    found.launch("n-1", "spot-a")
    found.update((DEMAND,))
    assert found.cost_per_hour() == pytest.approx(0.4)
    assert (found.open_count("spot-a"), found.offer("spot-a")) == (0, SPOT)
    found.ended("n-1")
    assert found.offer("spot-a") is None


def test_a_cost_that_is_not_known_is_none() -> None:
    found = market(replace(SPOT, price_per_hour=None))
    assert (found.cost_per_hour(), found.on_demand_cost_per_hour()) == (None, None)
    assert market().cost_per_hour() is None
    found = market(SPOT)
    found.launch("n-1", "spot-a")
    assert found.on_demand_cost_per_hour() is None
    found.found("n-2", "of another market")
    assert found.cost_per_hour() is None


def test_a_notice_lasts_until_its_deadline() -> None:
    def notice(deadline_s: float) -> NodeNotice:
        return NodeNotice("n-1", deadline_s, NoticeKind.SPOT)

    assert notice(12.0).left_s(10.0) == 2.0
    assert notice(9.0).left_s(10.0) == 0.0
    assert notice(1e12).left_s(10.0) == MAX_NOTICE_S
    for deadline_s in (nan, inf, -inf):
        with pytest.raises(InvalidArgument):
            notice(deadline_s).left_s(10.0)


_IDS = st.sampled_from(("spot-a", "spot-b", "demand"))
_NODES = st.sampled_from([f"n-{number}" for number in range(8)])
_OFFERS = st.builds(
    lambda offer_id, count, price: replace(
        SPOT, offer_id=offer_id, count=count, price_per_hour=price
    ),
    _IDS,
    st.integers(-1, 4),
    st.one_of(st.none(), st.floats(allow_nan=True)),
)


class AnyMarket(RuleBasedStateMachine):
    """Whatever a market does: what is sold is never more than what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.market = Market()
        self.nodes: dict[str, str] = {}

    @rule(offers=st.lists(_OFFERS, max_size=4))
    def update(self, offers: list[Offer]) -> None:
        self.market.update(offers)

    @rule(node_id=_NODES, offer_id=_IDS)
    def launch(self, node_id: str, offer_id: str) -> None:
        if node_id in self.nodes:
            return
        before = self.market.open_count(offer_id)
        try:
            self.market.launch(node_id, offer_id)
        except ResourceExhausted:
            assert before == 0
            return
        self.nodes[node_id] = offer_id
        offer = self.market.offer(offer_id)
        assert offer is not None
        assert sum(of == offer_id for of in self.nodes.values()) <= offer.count

    @rule(node_id=_NODES, now_s=st.floats(0, 100))
    def choose(self, node_id: str, now_s: float) -> None:
        offer = self.market.choose(SHAPE, now_s)
        if offer is not None:
            assert self.market.open_count(offer.offer_id) > 0
            self.launch(node_id, offer.offer_id)

    @rule(node_id=_NODES, offer_id=_IDS)
    def found(self, node_id: str, offer_id: str) -> None:
        self.market.found(node_id, offer_id)
        self.nodes[node_id] = offer_id

    @rule(node_id=_NODES)
    def ended(self, node_id: str) -> None:
        self.market.ended(node_id)
        self.nodes.pop(node_id, None)

    @rule(node_id=_NODES, retry_after_s=st.floats(), now_s=st.floats(0, 100))
    def refused(self, node_id: str, retry_after_s: float, now_s: float) -> None:
        self.market.refused(node_id, retry_after_s, now_s)
        self.nodes.pop(node_id, None)

    @invariant()
    def what_is_open_is_what_is_not_sold(self) -> None:
        for offer_id in ("spot-a", "spot-b", "demand"):
            sold = sum(of == offer_id for of in self.nodes.values())
            assert self.market.running(offer_id) == sold
            assert self.market.open_count(offer_id) >= 0
            offered = {offer.offer_id: offer for offer in self.market.offers()}.get(offer_id)
            left = 0 if offered is None else max(0, offered.count - sold)
            assert self.market.open_count(offer_id) == left

    @invariant()
    def a_cost_is_a_sum_or_is_not_known(self) -> None:
        cost = self.market.cost_per_hour()
        assert cost is None or 0 <= cost < inf


AnyMarket.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyMarket = AnyMarket.TestCase


def test_one_more_node_keeps_to_the_budget_with_all_that_run_beside_it() -> None:
    market = Market()
    shape = NodeShape(1 << 30, 1.0)
    dear = Offer("dear", "big", shape, count=9, price_per_hour=1.0)
    free = Offer("free", "own", shape, count=9)
    market.update([dear, free])
    for name in ("a", "b"):
        assert market.affords("dear", 2.0)
        market.launch(name, "dear")
    assert not market.affords("dear", 2.5)
    assert market.affords("dear", 3.0)
    assert market.affords("dear", 0.0), "it does not bind"
    assert market.affords("free", 2.0), "nobody names its price"
    assert not market.exceeds(2.0)
    market.update([replace(dear, price_per_hour=1.5), free])
    assert market.exceeds(2.0)
    market.ended("a")
    assert not market.exceeds(2.0)
    assert market.affords("dear", 3.0)


def test_an_offer_that_is_shunned_is_left_alone_and_its_node_paid_for() -> None:
    market = Market()
    shape = NodeShape(1 << 30, 1.0)
    market.update([Offer("spot", "big", shape, count=9, price_per_hour=1.0)])
    market.launch("a", "spot")
    market.shun("a", 60.0, 10.0)
    assert market.choose(shape, 69.0) is None
    assert market.choose(shape, 70.0) is not None
    assert market.running("spot") == 1
    market.shun("nobody", 60.0, 10.0)
    assert list(market.shut()) == ["spot"]


def test_an_offer_that_nobody_names_a_price_for_is_never_shunned() -> None:
    found = market(replace(SPOT, price_per_hour=None))
    found.launch("a", "spot-a")
    found.shun("a", 60.0, 10.0)
    assert found.shut() == {}
    assert found.choose(SHAPE, 10.0) is not None
