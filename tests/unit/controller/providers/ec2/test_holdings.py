from __future__ import annotations

import pytest

from services.common.errors import ResourceExhausted, Unavailable
from services.common.nodes import NodeShape
from services.controller.providers.ec2.bounds import Bounds
from services.controller.providers.ec2.holdings import Holdings
from services.controller.providers.ec2.inventory import INTERRUPTED, Instance, State
from services.controller.providers.ec2.table import InstanceType, Table

KIND = InstanceType("g5.xlarge", NodeShape(1, 1.0), 9, 1.0)
OFFER = "g5.xlarge/z/spot"
WAIT_S = 5.0


def holdings(*, instances: int = 9, open_s: float = -100.0) -> Holdings:
    """That is open from the start."""
    found = Holdings(Table({KIND.name: KIND}), Bounds(instances, 100.0), consistency_s=WAIT_S)
    found.looked((), open_s, None)
    found.looked((), open_s + WAIT_S, None)
    return found


def instance(
    instance_id: str, node_id: str = "node-1", state: State = State.RUNNING, **more: str
) -> Instance:
    kind, reason = more.get("kind", "g5.xlarge"), more.get("reason", "")
    return Instance(instance_id, node_id, OFFER, kind, "z", state, more.get("at", ""), reason)


def test_nothing_is_ordered_until_it_is_known_what_runs() -> None:
    fresh = Holdings(Table({KIND.name: KIND}), Bounds(9, 100.0), consistency_s=WAIT_S)
    for begun_s in (None, 10.0, 14.9):
        if begun_s is not None:
            fresh.looked((), begun_s, None)
        with pytest.raises(Unavailable):
            fresh.order("node-1", OFFER, 1.0)
    fresh.looked((), 15.0, None)
    fresh.order("node-1", OFFER, 1.0)


def test_an_order_counts_before_it_is_answered_and_until_it_is_seen() -> None:
    held = holdings(instances=1)
    held.order("node-1", OFFER, 1.0)
    for happens in (
        lambda: held.looked((), 1.0, None),
        lambda: held.started("node-1", ("i-1",), 2.0),
        lambda: held.looked((), 3.0, None),
        lambda: held.looked((instance("i-1"),), 4.0, None),
    ):
        happens()
        assert held.paid() == [1.0]
        with pytest.raises(ResourceExhausted):
            held.order("node-2", OFFER, 1.0)
    held.looked((instance("i-1", state=State.TERMINATED),), 5.0, None)
    held.order("node-2", OFFER, 1.0)


def test_what_was_started_and_is_never_shown_is_gone() -> None:
    held = holdings()
    held.order("node-1", OFFER, 1.0)
    held.started("node-1", ("i-1",), 1.0)
    assert held.looked((), 6.0, None).gone == ()
    (gone,) = held.looked((), 6.1, None).gone
    assert gone.node_id == "node-1"
    assert held.paid() == []


def test_an_instance_that_is_not_shown_for_a_moment_is_not_gone() -> None:
    held = holdings()
    held.looked((instance("i-1"),), 0.0, {"node-1"})
    assert held.looked((), 1.0, {"node-1"}).gone == ()
    held.looked((instance("i-1"),), 2.0, {"node-1"})
    assert held.looked((), 6.9, {"node-1"}).gone == ()
    (gone,) = held.looked((), 12.0, {"node-1"}).gone
    assert "not to be found" in gone.reason


def test_an_interruption_is_told_from_any_other_end() -> None:
    held = holdings()
    held.looked((instance("i-1"), instance("i-2", "node-2")), 0.0, None)
    ended = held.looked(
        (
            instance("i-1", state=State.TERMINATED, reason=INTERRUPTED),
            instance("i-2", "node-2", State.TERMINATED, reason="Client.UserInitiatedShutdown"),
        ),
        1.0,
        None,
    )
    assert [one.interrupted is not None for one in ended.gone] == [True, False]


def test_an_order_without_an_answer_is_what_carries_its_name_or_nothing() -> None:
    held = holdings()
    for node_id in ("node-1", "node-2"):
        held.order(node_id, OFFER, 1.0)
        held.unanswered(node_id, 0.0)
    looked = held.looked((instance("i-1"),), 1.0, {"node-1", "node-2"})
    assert (looked.gone, looked.came_to_nothing, looked.to_end) == ((), (), {})
    assert held.instance_id_of("node-1") == "i-1"
    looked = held.looked((instance("i-1"),), 5.1, {"node-1", "node-2"})
    assert looked.came_to_nothing == ("node-2",)
    assert not held.holds("node-2")


def test_an_order_that_was_called_off_is_ended_when_it_is_seen() -> None:
    held = holdings()
    held.order("node-1", OFFER, 1.0)
    held.call_off("node-1")
    held.started("node-1", ("i-1",), 0.0)
    looked = held.looked((instance("i-1"),), 1.0, {"node-1"})
    assert looked.to_end.keys() == {"i-1"}
    looked = held.looked((instance("i-1", state=State.TERMINATED),), 2.0, {"node-1"})
    assert [one.node_id for one in looked.gone] == ["node-1"]
    assert not held.holds("node-1")


@pytest.mark.parametrize(
    ("one", "known", "ends"),
    [
        (instance("i-1"), {"node-1"}, False),
        (instance("i-1"), None, False),
        (instance("i-1"), set(), True),
        (instance("i-1", ""), {"node-1"}, True),
        (instance("i-1", kind="p5.48xlarge"), {"node-1"}, True),
        (instance("i-1", state=State.STOPPED), {"node-1"}, True),
        (instance("i-1", state=State.SHUTTING_DOWN), set(), False),
        (instance("i-1", state=State.TERMINATED), set(), False),
    ],
)
def test_what_is_nobodys_node_is_ended(one: Instance, known: set[str] | None, ends: bool) -> None:
    assert bool(holdings().looked((one,), 0.0, known).to_end) == ends


def test_of_two_of_a_name_the_older_is_the_node_unless_it_was_answered() -> None:
    both = (instance("i-1", at="2"), instance("i-2", at="1"))
    held = holdings()
    assert held.looked(both, 0.0, {"node-1"}).to_end.keys() == {"i-1"}
    held = holdings()
    held.order("node-1", OFFER, 1.0)
    held.started("node-1", ("i-1",), 0.0)
    assert held.looked(both, 1.0, {"node-1"}).to_end.keys() == {"i-2"}


def test_what_was_adopted_is_believed_for_a_while() -> None:
    held = holdings()
    held.adopt("node-1", "i-1", 0.0)
    assert held.holds("node-1")
    assert held.looked((), 1.0, {"node-1"}).gone == ()
    held.looked((instance("i-1"),), 2.0, {"node-1"})
    assert held.offer_of("node-1") == OFFER
    held.adopt("node-2", "i-2", 2.0)
    assert [one.node_id for one in held.looked((instance("i-1"),), 9.0, None).gone] == ["node-2"]


def test_a_node_that_came_from_another_zone_is_of_that_zones_offer() -> None:
    held = holdings()
    one = Instance("i-1", "node-1", "g5.xlarge/elsewhere/spot", "g5.xlarge", "z", State.RUNNING)
    held.looked((one,), 0.0, None)
    assert held.offer_of("node-1") == OFFER
