"""An offer that refuses again and again is left alone for ever longer."""

from __future__ import annotations

import pytest

from services.controller.core.cluster.pauses import Pauses


def refused_whenever_it_may_be(pauses: Pauses, pause_s: float, until_s: float) -> list[float]:
    """When the offer is asked that always says no, by somebody who asks as soon as he may."""
    asked, now_s = list[float](), 0.0
    while now_s < until_s:
        asked.append(now_s)
        pauses.begin("spot", pause_s, now_s)
        now_s = pauses.ends_s()["spot"]
    return asked


def test_a_pause_doubles_up_to_the_longest() -> None:
    asked = refused_whenever_it_may_be(Pauses(longest_s=20.0), 3.0, 100.0)
    assert asked == [0.0, 3.0, 9.0, 21.0, 41.0, 61.0, 81.0]


@pytest.mark.parametrize("pause_s", [0.5, 3.0, 180.0])
def test_however_short_its_first_pause_is_an_offer_is_asked_a_few_times_an_hour(
    pause_s: float,
) -> None:
    assert len(refused_whenever_it_may_be(Pauses(), pause_s, 3600.0)) <= 14


def test_what_is_refused_together_counts_once() -> None:
    pauses = Pauses()
    assert [pauses.begin("spot", 10.0, at_s) for at_s in (0.0, 0.1, 0.2)] == [1, 0, 0]
    assert pauses.goes_on("spot", 10.1)
    assert not pauses.goes_on("spot", 10.2)
    assert pauses.begin("spot", 10.0, 10.2) == 2
    assert not pauses.goes_on("other", 0.0)


def test_a_first_pause_that_is_longer_than_the_longest_counts() -> None:
    assert refused_whenever_it_may_be(Pauses(longest_s=5.0), 30.0, 90.0) == [0.0, 30.0, 60.0]


def test_a_node_that_came_of_it_ends_the_row_and_not_the_pause() -> None:
    pauses = Pauses()
    refused_whenever_it_may_be(pauses, 10.0, 60.0)
    pauses.begin("spot", 10.0, 70.0)
    pauses.kept_its_word("spot")
    assert pauses.goes_on("spot", 149.0), "others of it were refused"
    assert pauses.begin("spot", 10.0, 150.0) == 1
    assert pauses.ends_s() == {"spot": 160.0}


def test_more_of_it_ends_both() -> None:
    pauses = Pauses()
    pauses.begin("spot", 10.0, 0.0)
    pauses.end("spot")
    assert pauses.ends_s() == {}
    assert pauses.begin("spot", 10.0, 1.0) == 1


def test_a_refusal_of_long_ago_is_none_in_a_row() -> None:
    pauses = Pauses(longest_s=100.0)
    pauses.begin("spot", 10.0, 0.0)
    assert pauses.begin("spot", 10.0, 111.0) == 1


def test_an_offer_that_is_withdrawn_is_forgotten() -> None:
    pauses = Pauses()
    pauses.begin("spot", 10.0, 0.0)
    pauses.begin("firm", 10.0, 0.0)
    pauses.forget_but({"firm"})
    assert pauses.ends_s() == {"firm": 10.0}
    assert pauses.begin("spot", 10.0, 20.0) == 1
