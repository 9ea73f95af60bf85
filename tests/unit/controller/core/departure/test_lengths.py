"""What is told of answers yet to end agrees with counting those that did."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.departure.lengths import KEPT, LEAST_SEEN, AnswerLengths


@given(st.lists(st.integers(1, 40), min_size=LEAST_SEEN, max_size=60), st.integers(0, 40))
def test_without_cut_ones_it_is_the_share_of_those_that_were_longer(
    seen: list[int], length: int
) -> None:
    lengths = AnswerLengths(seen)
    longer = [one for one in seen if one > length]
    for tokens in (0, 1, 7, 100):
        told = lengths.ends_within(length, tokens)
        if len(longer) < LEAST_SEEN:
            assert told == 0.0
        else:
            within = sum(one <= length + tokens for one in longer)
            assert told == pytest.approx(within / len(longer))


def test_one_that_was_cut_off_is_no_end_and_was_there_until_then() -> None:
    """Kaplan and Meier's own way to count: the share that is left shrinks at ends alone."""
    lengths = AnswerLengths([10] * 5 + [30] * 5)
    for _ in range(10):
        lengths.ended(20, cut=True)
    assert lengths.ends_within(0, 10) == pytest.approx(5 / 20)
    assert lengths.ends_within(0, 29) == pytest.approx(5 / 20)
    assert lengths.ends_within(10, 10) == 0.0
    assert lengths.ends_within(10, 20) == pytest.approx(1.0)


def test_of_answers_that_are_all_cut_off_nothing_is_expected_to_end() -> None:
    lengths = AnswerLengths()
    for length in range(100):
        lengths.ended(length, cut=True)
    assert lengths.ends_within(0, 1000) == 0.0


def test_it_finds_the_true_chance_though_half_are_cut_off() -> None:
    random, lengths = Random(7), AnswerLengths()
    for _ in range(KEPT):
        answer, limit = random.expovariate(1 / 200), random.expovariate(1 / 200)
        lengths.ended(round(min(answer, limit)), cut=limit < answer)
    assert lengths.ends_within(50, 200) == pytest.approx(1 - 2.718**-1, abs=0.1)


def test_what_was_asked_long_ago_is_forgotten() -> None:
    lengths = AnswerLengths([1000] * KEPT)
    assert lengths.ends_within(0, 10) == 0.0
    for _ in range(KEPT):
        lengths.ended(5, cut=False)
    assert lengths.ends_within(0, 10) == pytest.approx(1.0)
