from __future__ import annotations

import itertools
import random

import pytest

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.core.lookup import Lookup
from services.engine.core.speculation import Speculation, worthwhile
from services.engine.core.step_cost import StepCost


def cost_of(step_s: float, row_s: float) -> StepCost:
    cost = StepCost()
    for number in range(400):
        rows = 1 + number % 40
        cost.observe(rows, step_s + row_s * rows)
    return cost


def rate(chances: list[list[float]], counts: list[int], cost: StepCost) -> float:
    """Tokens for the time of a step."""
    tokens = sum(1 + sum(each[:count]) for each, count in zip(chances, counts, strict=True))
    return tokens / cost.of(len(chances) + sum(counts))


def test_one_sequence_drafts_as_far_as_chances_outweigh_rows() -> None:
    chances = [[0.8**n for n in range(1, 9)]]
    assert worthwhile(chances, 64, cost_of(0.010, 0.0008)) == [7]
    assert worthwhile(chances, 64, cost_of(0.010, 0.00001)) == [8]
    assert worthwhile(chances, 64, cost_of(0.0, 0.001)) == [0]
    assert worthwhile([[0.05]], 64, cost_of(0.010, 0.0008)) == [0]


def test_the_same_guess_is_worth_less_in_a_larger_batch() -> None:
    cost = cost_of(0.010, 0.0008)
    drafted = [sum(worthwhile([[0.4]] * batch, 64, cost)) for batch in (1, 4, 32)]
    assert drafted == [1, 4, 0]


def test_the_likeliest_guesses_come_first_where_there_is_little_room() -> None:
    chances = [[0.5, 0.4], [0.9, 0.8, 0.7], [], [0.6]]
    assert worthwhile(chances, 3, cost_of(0.010, 0.0001)) == [0, 3, 0, 0]
    assert worthwhile(chances, 0, cost_of(0.010, 0.0001)) == [0, 0, 0, 0]
    assert worthwhile([], 5, StepCost()) == []


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_yields_more_for_its_time(seed: int) -> None:
    chance = random.Random(seed)
    cost = cost_of(0.010, chance.choice((0.0002, 0.001, 0.003)))
    chances = []
    for _ in range(chance.randint(1, 3)):
        first, further = chance.random(), chance.random()
        chances.append([first * further**n for n in range(chance.randint(0, 4))])
    chosen = rate(chances, worthwhile(chances, 64, cost), cost)
    for counts in itertools.product(*(range(len(each) + 1) for each in chances)):
        assert rate(chances, list(counts), cost) <= chosen * (1 + 1e-9)


def test_drafts_are_the_guesses_that_are_worth_it_and_none_where_none_may_be() -> None:
    request = GenerationRequest("g", ModelRef("m", "d"), (), Sampling(max_tokens=1000))
    round_and_round, new = Lookup(request, [1, 2, 3] * 20), Lookup(request, list(range(60)))
    drafts = Speculation(8, 64).drafts([round_and_round, new])
    assert drafts == [(1, 2, 3, 1, 2, 3, 1, 2), ()]
    assert Speculation(8, 5).drafts([round_and_round, new]) == [(1, 2, 3), ()]
    assert Speculation(0, 64).drafts([round_and_round, new]) == [(), ()]
