"""A formation is left in time whatever is wrong by a third, and hardly earlier than by one that
knows all."""

from __future__ import annotations

from collections import defaultdict

from services.controller.core.departure.departure import LOOK_S, Departure
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Rates, Stream
from tests.unit.controller.core.departure.leaving_formation import best_decoded, formation

SCHEDULES = 1000
ORACLES = 240


def stream(name: str, *, bytes_left: int | None = None, left: int = 1000) -> Stream:
    rate = 10.0 if bytes_left is None else 0.1  # blocks that fill meanwhile would travel too
    return Stream(name, 160, (10,), 10 + left, rate, bytes=bytes_left)


def test_of_a_thousand_none_misses_its_deadline() -> None:
    choices: dict[Choice | None, int] = defaultdict(int)
    for seed in range(SCHEDULES):
        played = formation(seed)
        if seed % 3 == 0:
            played.slower_from_s = played.notice_s / 3
        played.play()
        assert played.late == [], seed
        for one in played.running:
            assert one.ended or one.sealed_s is not None, seed
            choices[one.choice] += 1
    assert min(choices[choice] for choice in Choice) > SCHEDULES / 4, dict(choices)


def test_what_is_decoded_until_then_is_nearly_what_one_decodes_that_knows_all() -> None:
    ours: dict[float, float] = defaultdict(float)
    best: dict[float, float] = defaultdict(float)
    for seed in range(ORACLES):
        played = formation(SCHEDULES + seed, streams=1 + seed % 6)
        best[played.notice_s] += best_decoded(played)
        played.play()
        ours[played.notice_s] += played.decoded
    shares = {notice_s: ours[notice_s] / best[notice_s] for notice_s in best}
    assert sorted(shares) == [5.0, 10.0, 30.0]
    assert min(shares.values()) >= 0.9, shares
    assert max(shares.values()) <= 1.1, shares


def test_a_link_slower_than_thought_turns_a_push_into_a_replay() -> None:
    departure, unknown = Departure(10.0), AnswerLengths()
    fast = Rates(replay_positions_per_s=100.0, link_bytes_per_s=20_000.0)
    look = departure.look([stream("g", bytes_left=80_000)], fast, unknown, 0.0)
    assert [m.choice for m in look.told] == [Choice.PUSH]
    assert look.pushes == ()
    begins_s = look.told[0].begins_s + 0.1
    look = departure.look([stream("g", bytes_left=80_000)], fast, unknown, begins_s)
    assert [m.generation_id for m in look.pushes] == ["g"]
    assert look.running == {"g"}
    assert look.wakes_at_s <= begins_s + LOOK_S
    slow = Rates(replay_positions_per_s=100.0, link_bytes_per_s=5_000.0)
    look = departure.look([stream("g", bytes_left=70_000)], slow, unknown, begins_s + 1.0)
    assert [m.choice for m in look.told] == [Choice.REPLAY]
    assert look.running == {"g"}, "there is time until it has to be sealed"
    look = departure.look([stream("g", bytes_left=60_000)], slow, unknown, 10.0)
    assert look.running == frozenset()


def test_one_whose_blocks_are_over_is_sealed() -> None:
    departure, unknown = Departure(10.0), AnswerLengths()
    rates = Rates(replay_positions_per_s=100.0, link_bytes_per_s=10_000.0, push_s=0.1)
    look = departure.look([stream("g", bytes_left=30_000)], rates, unknown, 0.0)
    begins_s = look.told[0].begins_s + 0.1
    look = departure.look([stream("g", bytes_left=30_000)], rates, unknown, begins_s)
    assert len(look.pushes) == 1
    look = departure.look([stream("g", bytes_left=0)], rates, unknown, 9.95)
    assert (look.running, look.pushes) == (frozenset(), ())
    assert look.told == (), "it needs the link no more, however late it is"


def test_blocks_that_may_travel_always_do_so_whatever_that_spares() -> None:
    rates, unknown = Rates(link_bytes_per_s=10_000.0), AnswerLengths()
    for always, choice in ((False, Choice.REPLAY), (True, Choice.PUSH)):
        look = Departure(10.0, always=always).look(
            [stream("g", bytes_left=10_000)], rates, unknown, 0.0
        )
        assert [m.choice for m in look.told] == [choice]


def test_what_was_told_to_stop_is_not_kept_again() -> None:
    departure, unknown = Departure(10.0), AnswerLengths()
    slow = Rates(replay_positions_per_s=10.0)
    streams = [stream("a"), stream("b")]
    look = departure.look(streams, slow, unknown, 0.0)
    assert look.running == {"b"}, "the first is replayed while the other one decodes on"
    look = departure.look(streams, Rates(), unknown, 0.1)
    assert look.running == {"b"}
    assert look.told == ()


def test_one_that_was_to_end_and_did_not_is_sealed_in_time() -> None:
    departure, unknown, rates = Departure(10.0), AnswerLengths(), Rates(seal_s=0.5)
    look = departure.look([stream("g", left=50)], rates, unknown, 0.0)
    assert [m.choice for m in look.told] == [Choice.FINISH]
    assert look.wakes_at_s < 9.5
    look = departure.look([stream("g", left=3)], rates, unknown, 9.4)
    assert (look.running, look.wakes_at_s) == ({"g"}, 9.5)
    assert [m.choice for m in look.told] == [Choice.REPLAY]
    look = departure.look([stream("g", left=2)], rates, unknown, 9.5)
    assert (look.running, look.told) == (frozenset(), ())
