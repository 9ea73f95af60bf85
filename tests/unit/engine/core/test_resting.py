"""Blocks go ahead for as much of the time as decoding can spare, and no more than they may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.core.resting import AheadSettings, Resting

MOST, SLOWS = 0.5, 0.1
RATE = 4000.0
"""Steps a second of who decodes alone."""


def seen(lost: float, rounds: int = 12) -> tuple[Resting, float]:
    """Rounds of half a second, of which each costs so much of the rate; and what decoding lost over
    the last half of them."""
    resting, steps, whole_s = Resting(AheadSettings(MOST, SLOWS)), 0.0, 0.0
    for number in range(rounds):
        beside = RATE * (1 - lost) * 0.5
        resting.went(0.5, round(beside))
        rest_s = resting.rest_s(0.5)
        resting.rested(rest_s, round(RATE * rest_s))
        if number >= rounds // 2:
            steps, whole_s = steps + beside + RATE * rest_s, whole_s + 0.5 + rest_s
    return resting, 1 - steps / (RATE * whole_s)


@given(st.floats(0, 1))
def test_decoding_loses_no_more_than_is_allowed(lost: float) -> None:
    resting, slowed = seen(lost)
    assert slowed <= SLOWS + 0.01
    assert SLOWS - 0.01 <= resting.share <= MOST


def test_rounds_that_cost_nothing_have_their_share() -> None:
    resting, _ = seen(0.0)
    assert resting.share == MOST
    assert resting.rest_s(2.0) == pytest.approx(2.0)


def test_the_first_round_rests_by_the_share() -> None:
    resting = Resting(AheadSettings(0.25, SLOWS))
    resting.went(1.0, 0)
    assert resting.rest_s(1.0) == pytest.approx(3.0)


def test_where_nothing_decodes_nothing_is_lost() -> None:
    resting = Resting(AheadSettings(MOST, SLOWS))
    for _ in range(3):
        resting.went(1.0, 0)
        resting.rested(1.0, 0)
    assert resting.share == MOST


def test_what_was_long_ago_is_forgotten() -> None:
    resting, _ = seen(0.8)
    assert resting.share == pytest.approx(SLOWS / 0.8, rel=0.1)
    for _ in range(12):
        resting.went(0.5, round(RATE * 0.5))
        resting.rested(0.5, round(RATE * 0.5))
    assert resting.share == MOST
