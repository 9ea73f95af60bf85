"""What a link and a next pipeline make of many that are handed over at once, by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from services.controller.core.departure.schedule import PUSH_S
from simulator.handover import Ground, Running, drawn, go_ahead, hand_over

GROUND = Ground(
    block_bytes=100,
    link_bytes_per_s=1000.0,
    step_s=0.5,
    prefill_positions_per_s=100.0,
    call_s=0.0,
    round_bytes=200,
    ahead_share=0.5,
    fetch_s=5.0,
)


def two() -> list[Running]:
    return [Running("long", 400, 1000, 0.0), Running("short", 80, 1000, 0.0)]


def test_what_is_read_again_is_computed_one_after_another_the_shortest_first() -> None:
    found = hand_over(two(), {"long": 9}, GROUND, "replay")
    assert found.gaps_s == (0.8 + 0.5, 0.8 + 4.0 + 0.5)
    assert (found.pushed, found.replayed, found.ahead_bytes) == (0, 2, 0)
    assert found.computed_positions == 480


def test_what_is_fetched_shares_the_link_until_nobody_waits_longer() -> None:
    found = hand_over(two(), {}, GROUND, "kv")  # 25 and 5 blocks
    tail_s = PUSH_S + 0.01 + 0.5
    assert found.gaps_s == pytest.approx((1.0 + tail_s, 3.0 + tail_s))
    assert (found.behind_bytes, found.computed_positions) == (3000, 2)
    cut = hand_over(two(), {}, replace(GROUND, fetch_s=2.0), "kv")
    assert cut.gaps_s == pytest.approx((1.0 + tail_s, 2.0 + tail_s + 1.6))
    assert cut.computed_positions == 2 + 10 * 16


def test_blocks_go_ahead_while_more_are_filled_those_first_that_end_first() -> None:
    running = [Running("late", 64, 400, 0.0), Running("early", 64, 100, 0.0)]
    took_s, over = go_ahead(running, GROUND, 0.4)
    assert (took_s, over) == (0.4, {"early": 2})
    took_s, over = go_ahead(running, GROUND, 100.0)
    assert took_s == pytest.approx(1.6), "none lacks more than one"
    assert over == {"early": 4, "late": 4}
    assert [one.tokens for one in running] == pytest.approx([4.0, 4.0])


def test_what_ends_meanwhile_does_not_move() -> None:
    running = [Running("ends", 64, 1, 0.5), Running("stays", 64, 400, 0.0)]
    _, over = go_ahead(running, GROUND, 100.0)
    found = hand_over(running, over, GROUND, "auto")
    assert (found.ended, found.pushed + found.replayed) == (1, 1)


def test_long_answers_are_met_more_often() -> None:
    running = drawn(Random(1), 4000, (100.0, 0.5), (200.0, 1.0))
    assert sum(one.answer for one in running) / 4000 == pytest.approx(400.0, rel=0.05)
    assert sum(one.prompt for one in running) / 4000 == pytest.approx(100.0, rel=0.05)
    assert all(0 < one.left <= one.answer for one in running)
