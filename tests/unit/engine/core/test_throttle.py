from __future__ import annotations

import pytest

from services.engine.core.throttle import LONGEST_CREDIT_S, LONGEST_REST_S, Throttle


def made(throttle: Throttle, now_s: float, computed_s: float, waited_s: float = 0.0) -> float:
    """A step that waited so long for a core; when it and its rest are over."""
    ended_s = now_s + computed_s + waited_s
    ended_s += throttle.rest_s(now_s, computed_s, ended_s)
    throttle.done(ended_s)
    return ended_s


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_steps_take_as_long_as_the_share_says(share: float) -> None:
    throttle, now_s = Throttle(share), 100.0
    for computed_s in (0.01, 0.04, 0.002):
        now_s = made(throttle, now_s, computed_s)
    assert now_s == pytest.approx(100.0 + 0.052 / share)


def test_a_wait_for_a_core_is_rest_enough() -> None:
    throttle = Throttle(0.5)
    assert made(throttle, 0.0, 0.1, waited_s=0.04) == pytest.approx(0.2)


def test_a_step_that_was_late_is_made_good_by_the_next_and_not_by_all_that_follow() -> None:
    throttle = Throttle(0.5)
    throttle.rest_s(0.0, 0.1, 0.1)
    throttle.done(0.21)  # a timer was late
    assert made(throttle, 0.21, 0.1) == pytest.approx(0.4)
    late_s = made(throttle, 0.4, 0.1, waited_s=60.0)
    assert made(throttle, late_s, 0.1) == pytest.approx(late_s + 0.2 - LONGEST_CREDIT_S)


def test_time_without_work_is_no_credit() -> None:
    throttle = Throttle(0.5)
    made(throttle, 0.0, 0.1)
    assert made(throttle, 5.0, 0.1) == pytest.approx(5.2)


def test_no_step_rests_so_long_that_it_seems_stuck_and_what_is_owed_is_paid_later() -> None:
    throttle = Throttle(0.1)
    now_s = made(throttle, 0.0, 0.2)
    assert now_s == pytest.approx(0.2 + LONGEST_REST_S)
    steps = 0
    while now_s < 2.0:
        now_s, steps = made(throttle, now_s, 0.001), steps + 1
    assert steps == 3
    assert now_s == pytest.approx(2.0 + 0.03)


def test_what_is_owed_passes_while_there_is_nothing_to_do() -> None:
    throttle = Throttle(0.1)
    made(throttle, 0.0, 0.2)
    assert made(throttle, 9.0, 0.01) == pytest.approx(9.1)


def test_a_whole_core_owes_no_rest() -> None:
    throttle = Throttle(1.0)
    assert throttle.rest_s(0.0, 5.0, 4.9) == 0.0
