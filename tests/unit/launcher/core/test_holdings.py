from __future__ import annotations

import pytest

from services.common.errors import ResourceExhausted
from services.launcher.core.containers import Container
from services.launcher.core.holdings import Holdings

ONE, TWO = Container("c1", "n1", "a", "0"), Container("c2", "n2", "a")


def test_what_is_being_launched_takes_a_place_too() -> None:
    holdings = Holdings(2)
    holdings.order("n1", "0")
    holdings.order("n2", "")
    assert holdings.devices == {"0"}
    with pytest.raises(ResourceExhausted, match="2 containers"):
        holdings.order("n3", "")
    holdings.settled("n2")
    holdings.order("n3", "")


def test_a_container_that_runs_counts_once_with_its_order() -> None:
    holdings = Holdings(2)
    holdings.order("n1", "0")
    assert holdings.started(ONE)
    assert not holdings.started(ONE)
    holdings.order("n2", "")
    holdings.settled("n1")
    assert holdings.of_node("n1") == ONE
    assert holdings.devices == {"0"}
    with pytest.raises(ResourceExhausted):
        holdings.order("n3", "")
    assert holdings.ended("c1") == ONE
    assert holdings.ended("c1") is None
    holdings.order("n3", "")


def test_a_look_shows_what_is_missing_and_not_what_began_meanwhile() -> None:
    holdings = Holdings(9)
    holdings.started(ONE)
    known = holdings.running
    holdings.started(TWO)
    assert holdings.looked([], known) == (ONE,)
    assert holdings.looked([ONE, TWO], holdings.running) == ()
    assert set(holdings.running) == {ONE, TWO}
