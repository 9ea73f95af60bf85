from __future__ import annotations

import random

import pytest

from services.engine.core.step_cost import GRANTED_ROWS, StepCost


def test_before_any_step_a_row_costs_a_sixteenth_of_a_step_without_any() -> None:
    cost = StepCost()
    assert cost.of(0) == GRANTED_ROWS * cost.row


def test_the_line_is_found_among_steps_that_vary_in_time() -> None:
    chance, cost = random.Random(5), StepCost()
    for _ in range(300):
        rows = chance.randint(1, 9)
        cost.observe(rows, (0.010 + 0.0008 * rows) * chance.uniform(0.85, 1.15))
    assert cost.row == pytest.approx(0.0008, rel=0.35)
    assert cost.of(1) == pytest.approx(0.0108, rel=0.1)
    assert cost.of(9) == pytest.approx(0.0172, rel=0.1)


def test_steps_of_one_size_leave_the_row_at_what_is_taken_for_granted() -> None:
    cost = StepCost()
    for _ in range(200):
        cost.observe(4, 0.02)
    assert cost.of(4) == pytest.approx(0.02)
    assert cost.row == pytest.approx(0.02 / (GRANTED_ROWS + 4))


def test_what_is_true_now_counts_more_than_what_was() -> None:
    chance, cost = random.Random(5), StepCost()
    for row_s in (0.0001, 0.002):
        for _ in range(250):
            rows = chance.randint(1, 9)
            cost.observe(rows, 0.010 + row_s * rows)
    assert cost.row == pytest.approx(0.002, rel=0.15)


def test_a_step_that_was_held_up_says_little() -> None:
    chance, cost = random.Random(5), StepCost()
    for number in range(200):
        rows = chance.randint(1, 9)
        cost.observe(rows, 5.0 if number % 40 == 39 else 0.010 + 0.0008 * rows)
    assert cost.of(5) < 0.020


@pytest.mark.parametrize("row_s", [0.0, -0.001])
def test_a_row_is_never_for_nothing(row_s: float) -> None:
    cost = StepCost()
    for number in range(200):
        rows = 1 + number % 8
        cost.observe(rows, 0.020 + row_s * rows)
    assert 0 < cost.row < 0.0005


def test_a_step_is_never_for_nothing_and_a_time_that_is_not_known_says_nothing() -> None:
    cost = StepCost()
    for number in range(100):
        cost.observe(1 + number % 8, 0.001 * (1 + number % 8) ** 2)
        cost.observe(3, 0.0)
    assert cost.of(1) > 0
