from __future__ import annotations

from random import Random

import pytest

from services.placement.estimate.engine import EngineProfile
from simulator.fleet.batch import Batch, Generation


class Times:
    """A step takes a second; the cache has as much room as the test says."""

    def __init__(self, room: int, **profile: int) -> None:
        self.profile = EngineProfile(**profile)
        self.stages = 1
        self.room = room
        self.rows: list[int] = []

    def room_positions(self) -> int:
        return self.room

    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float:
        self.rows.append(prompt_rows)
        return 1.0


def finished(batch: Batch) -> tuple[list[Generation], float]:
    """Runs it until it is empty; each generation ends once."""
    now_s, ended = 0.0, list[Generation]()
    while (took_s := batch.begin()) is not None:
        now_s += took_s
        ended += batch.end(now_s)
    return ended, now_s


def test_a_generation_has_its_first_token_when_its_prompt_is_read() -> None:
    batch = Batch(Times(1000, token_budget=10))
    one = Generation(0, 0.0, prompt=25, output=4)
    batch.add(one)
    ended, now_s = finished(batch)
    assert ended == [one]
    assert one.first_s == 3.0  # chunks of 10, 10 and 5
    assert (one.last_s, now_s) == (6.0, 6.0)


def test_who_left_while_its_prompt_was_read_has_none_of_it_read() -> None:
    batch, elsewhere = Batch(Times(1000)), Batch(Times(1000, token_budget=10))
    one = Generation(0, 0.0, prompt=25, output=4)
    batch.add(one)
    assert batch.begin() == 1.0
    assert batch.leave() == [one]
    elsewhere.add(one)
    elsewhere.begin()
    assert batch.end(1.0) == []
    elsewhere.end(1.0)
    assert (one.read, one.held, batch.sampled) == (10, 0, 0)


def test_what_does_not_fit_waits_in_order() -> None:
    batch = Batch(Times(100))
    first, second = (Generation(n, 0.0, prompt=50, output=20) for n in range(2))
    batch.add(first)
    batch.add(second)
    batch.begin()
    assert (batch.running, batch.waiting) == (1, 1)
    ended, _ = finished(batch)
    assert ended == [first, second]


def test_who_outgrows_the_cache_gives_back_the_youngest_and_computes_it_again() -> None:
    times = Times(100)
    batch = Batch(times)
    old, young = (Generation(n, 0.0, prompt=30, output=40) for n in range(2))
    batch.add(old)
    batch.add(young)
    ended, _ = finished(batch)
    assert ended == [old, young]
    assert batch.preempted >= 1
    assert sum(times.rows) > 60
    assert batch.sampled == 80


def test_a_generation_goes_on_from_what_it_holds() -> None:
    batch = Batch(Times(1000))
    one = Generation(0, 0.0, prompt=10, output=9)
    batch.add(one)
    for now_s in range(1, 4):
        batch.begin()
        batch.end(float(now_s))
    (left,) = batch.leave()
    assert (left.held, left.shown) == (3, 3)
    left.left_s = 3.0
    following = Batch(Times(1000))
    following.add(left)
    following.begin()
    following.end(7.0)
    assert (left.held, left.gap_s) == (4, 4.0)
    finished(following)
    assert batch.sampled + following.sampled == 9


def test_a_reader_waits_until_there_is_a_token_that_it_had_not() -> None:
    one = Generation(0, 0.0, prompt=10, output=9, shown=3, left_s=3.0, first_s=1.0)
    batch = Batch(Times(1000))
    batch.add(one)
    finished(batch)
    assert one.gap_s == 1.0  # the fourth token comes with the fourth step, at 4


def test_a_beginning_that_prompts_share_is_read_once() -> None:
    times = Times(1000)
    batch = Batch(times)
    batch.add(Generation(0, 0.0, prompt=40, output=1, prefix=30))
    finished(batch)
    batch.add(Generation(1, 0.0, prompt=50, output=1, prefix=30))
    finished(batch)
    assert times.rows == [40, 20]


@pytest.mark.parametrize("seed", range(20))
def test_room_is_kept_and_every_token_is_sampled_once(seed: int) -> None:
    random = Random(seed)
    batch = Batch(Times(300, token_budget=64, max_sequences=8))
    asked = [Generation(n, 0.0, random.randint(1, 100), random.randint(1, 100)) for n in range(40)]
    for one in asked:
        batch.add(one)
    ended, _ = finished(batch)
    assert sorted(one.number for one in ended) == list(range(40))
    assert batch.sampled == sum(one.output for one in asked)
    assert batch._used == batch._context == 0


def test_what_is_handed_on_leaves_and_what_came_with_it_is_not_read_again() -> None:
    times = Times(1000, token_budget=40)
    batch, elsewhere = Batch(Times(1000)), Batch(times)
    one = Generation(0, 0.0, prompt=35, output=4, hands_on=True)
    batch.add(one)
    batch.begin()
    assert batch.end(1.0) == []
    assert batch.take_handed_on() == [one]
    assert batch.take_handed_on() == []
    assert (one.held, one.first_s, batch.running, batch.begin()) == (1, 1.0, 0, None)
    one.hands_on, one.came = False, 32
    elsewhere.add(one)
    assert finished(elsewhere)[0] == [one]
    assert times.rows[0] == 35 + 1 - 32
    assert (one.held, batch.sampled, elsewhere.sampled) == (4, 1, 3)
