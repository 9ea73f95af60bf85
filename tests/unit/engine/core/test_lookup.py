from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.core.lookup import GRANTED, Basis, Lookup


def lookup(ids: list[int], prompt: int = 0, **sampling: object) -> Lookup:
    options = {"max_tokens": 10_000, **sampling}
    request = GenerationRequest(
        "g",
        ModelRef("m", "d"),
        tuple(ids[:prompt]),
        Sampling(**options),  # type: ignore[arg-type]
    )
    return Lookup(request, ids)


def test_what_followed_the_last_three_ids_is_guessed_where_they_stood_last() -> None:
    assert lookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3]).guess(3) == [5, 8, 1]


def test_two_ids_are_enough_where_three_never_stood() -> None:
    assert lookup([7, 2, 3, 4, 5, 9, 2, 3]).guess(2) == [4, 5]
    assert lookup([7, 3, 4, 5, 9, 3]).guess(2) == [], "one id says too little"


def test_a_run_goes_on_where_it_was_although_its_last_ids_stood_elsewhere_since() -> None:
    ids = [1, 2, 3, 4, 5, 6, 7, 0, 3, 4, 5, 8, 0, 1, 2, 3]
    guesses = lookup(ids)
    assert guesses.guess(4) == [4, 5, 6, 7]
    ids += [4, 5]
    assert guesses.guess(2) == [6, 7]


def test_a_text_that_goes_round_is_guessed_beyond_its_end() -> None:
    assert lookup([5, 1, 2, 3, 1, 2, 3, 1, 2]).guess(8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert lookup([4, 4, 4]).guess(3) == [4, 4, 4]


def test_nothing_is_guessed_that_would_end_the_sequence() -> None:
    ids = [1, 2, 3, 4, 9, 5, 1, 2, 3]
    assert lookup(ids, stop_token_ids=(9,)).guess(4) == [4]
    assert lookup(ids, eos_token_ids=(4,)).guess(4) == []
    assert lookup(ids, eos_token_ids=(9,), ignore_eos=True).guess(4) == [4, 9, 5, 1]
    assert lookup(ids, 2, eos_token_ids=(9,), min_tokens=9).guess(4) == [4, 9, 5, 1]
    assert lookup(ids, 2, max_tokens=10).guess(4) == [4, 9], "seven are there, the tenth ends it"
    assert lookup(ids, 2, max_tokens=8).guess(4) == []
    assert lookup(ids).guess(0) == []


def test_a_few_ids_give_no_guess() -> None:
    for count in range(4):
        assert lookup(list(range(count))).guess(8) == []


def test_what_guesses_are_worth_is_learnt_from_ids_that_nobody_drafted() -> None:
    ids = [1, 2, 3] * 3
    guesses = lookup(ids)
    guesses.read(len(ids))
    granted = GRANTED[Basis.RUN]
    sure = guesses.chances(2)
    assert sure[0] > granted
    for token in range(10, 40):
        ids += (1, 2, token)  # what follows the pair is always something else
    guesses.read(len(ids))
    ids += (1, 2)
    guesses.guess(1)
    assert guesses.chances(1)[0] < GRANTED[Basis.PAIR] / 2
    assert sure[1] == pytest.approx(sure[0] ** 2)


def test_a_prompt_says_nothing_of_how_an_answer_repeats_it() -> None:
    ids = [1, 2, 3] * 9
    guesses = lookup(ids, len(ids))
    guesses.read(len(ids))
    assert guesses.chances(1) == [GRANTED[Basis.RUN]]


def _plainly(ids: list[int]) -> list[int]:
    """The guess for every position, by looking through all that came before."""
    guesses, source = [], 0
    for end in range(1, len(ids)):
        before = source
        source = 0
        if before and ids[before] == ids[end - 1]:
            source = before + 1
        else:
            for count in (3, 2):
                last = ids[end - count : end] if end >= count else []
                places = [p for p in range(count, end) if last and ids[p - count : p] == last]
                if places and not source:
                    source = places[-1]
        guesses.append(ids[source] if source else -1)
    return guesses


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_index_says_what_looking_through_the_whole_text_says(seed: int) -> None:
    chance = random.Random(seed)
    whole = [chance.randrange(4) for _ in range(60)]
    ids: list[int] = whole[:1]
    guesses, found = lookup(ids), []
    for token in whole[1:]:
        found.append(next(iter(guesses.guess(1)), -1))
        ids.append(token)
        if chance.random() < 0.3:
            guesses.read(chance.randint(0, len(ids)))
    assert found == _plainly(whole)
