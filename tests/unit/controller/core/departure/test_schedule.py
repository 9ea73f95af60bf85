"""Whatever is to leave: no move exceeds the link or the end, and no reader loses more than if all
were replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.generation import PriorityClass
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Move, Rates, Reason, Stream
from services.controller.core.departure.schedule import schedule

UNKNOWN = AnswerLengths()
KV_BYTES = 1000.0
"""Of a position."""


def stream(name: str, positions: int = 160, **fields: object) -> Stream:
    made = Stream(name, positions, (10,), 10_000, 10.0, bytes=positions // 16 * 16 * 1000)
    return replace(made, **fields)  # type: ignore[arg-type]


def by_name(moves: Sequence[Move]) -> dict[str, Move]:
    return {move.generation_id: move for move in moves}


streams = st.lists(
    st.builds(
        lambda positions, share, left, rate, priority, travels: Stream(
            "",
            positions,
            (round(share * positions),),
            round(share * positions) + left,
            rate,
            priority,
            positions // 16 * 16 * 1000 if travels else None,
        ),
        st.integers(1, 8000),
        st.floats(0.0, 1.0),
        st.integers(1, 3000),
        st.floats(0.1, 100.0),
        st.sampled_from(PriorityClass),
        st.booleans(),
    ),
    max_size=12,
).map(lambda found: [replace(one, generation_id=f"g{i}") for i, one in enumerate(found)])

rates = st.builds(
    Rates,
    replay_s=st.floats(0.0, 0.5),
    replay_positions_per_s=st.floats(50.0, 50_000.0),
    link_bytes_per_s=st.sampled_from([0.0, 1e5, 1e6, 1e8]),
    push_s=st.floats(0.0, 0.2),
    seal_s=st.floats(0.0, 0.3),
    room_positions=st.sampled_from([inf, 10_000.0, 0.0]),
)
lengths = st.lists(st.integers(1, 3000), max_size=40).map(AnswerLengths)


@given(streams, rates, lengths, st.floats(0.0, 30.0))
def test_no_set_of_moves_exceeds_the_link_or_the_end(
    going: list[Stream], cost: Rates, seen: AnswerLengths, notice_s: float
) -> None:
    now_s, end_s = 100.0, 100.0 + notice_s
    moves = schedule(going, cost, seen, now_s=now_s, end_s=end_s)
    assert sorted(m.generation_id for m in moves) == sorted(s.generation_id for s in going)
    pushes = sorted((m for m in moves if m.choice is Choice.PUSH), key=lambda m: m.begins_s)
    for move in pushes:
        assert now_s - 1e-6 <= move.begins_s <= move.ends_s <= end_s + 1e-6
        carries = (move.ends_s - move.begins_s) * cost.link_bytes_per_s
        assert move.bytes <= carries * (1 + 1e-9) + 1e-3
    for one, other in pairwise(pushes):
        assert one.ends_s <= other.begins_s + 1e-6, "the link carries one after another"
    last_s = max(now_s, end_s - cost.seal_s)
    for move in moves:
        if move.choice is Choice.REPLAY:
            assert now_s <= move.begins_s <= last_s
            assert move.ends_s <= max(end_s, now_s + cost.seal_s) + 1e-6
        if move.choice is Choice.FINISH:
            assert move.ends_s <= last_s
            assert move.begins_s == inf
    of = {one.generation_id: one for one in going}
    taken = sum(of[m.generation_id].positions for m in pushes)
    assert taken <= cost.room_positions


def lost_tokens(moves: Sequence[Move], going: Sequence[Stream], cost: Rates, end_s: float) -> float:
    """Tokens that readers would have had while their generations were on their way."""
    of = {one.generation_id: one for one in going}
    lost, free_s = 0.0, -inf
    for move in sorted(moves, key=lambda m: m.begins_s):
        one = of[move.generation_id]
        if move.choice is Choice.PUSH:
            lost += one.tokens_per_s * cost.push_gap_s(one.positions)
        elif move.choice is Choice.REPLAY:
            starts_s = max(move.ends_s, free_s)
            free_s = starts_s + cost.replay_of_s(one.positions)
            lost += one.tokens_per_s * (free_s - move.begins_s)
    return lost


@given(streams, rates, lengths, st.floats(0.5, 30.0))
def test_no_worse_than_to_replay_all_of_them_at_the_end(
    going: list[Stream], cost: Rates, seen: AnswerLengths, notice_s: float
) -> None:
    cost = replace(cost, room_positions=inf, push_s=min(cost.push_s, cost.replay_s + cost.seal_s))
    end_s = notice_s
    chosen = schedule(going, cost, seen, now_s=0.0, end_s=end_s)
    last_s = max(0.0, end_s - cost.seal_s)
    order = [m.generation_id for m in sorted(chosen, key=lambda m: m.begins_s)]
    at_the_end = [
        Move(name, Choice.REPLAY, Reason.AT_ONCE, last_s, last_s + cost.seal_s) for name in order
    ]
    best = lost_tokens(at_the_end, going, cost, end_s)
    assert lost_tokens(chosen, going, cost, end_s) <= best * (1 + 1e-6) + 1e-6


def test_each_begins_as_late_as_it_can_and_the_longest_first() -> None:
    cost = Rates(replay_positions_per_s=100.0, seal_s=0.5)
    going = [stream("short", 100, bytes=None), stream("long", 400, bytes=None)]
    going = [replace(one, tokens_per_s=0.0, limit=100) for one in going]
    moves = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=20.0)
    assert [(m.generation_id, m.begins_s) for m in moves] == [("long", 15.5), ("short", 19.5)]


def test_where_time_is_short_the_first_begins_now_and_the_rest_at_the_end() -> None:
    cost = Rates(replay_positions_per_s=100.0)
    going = [stream(f"g{i}", 400, bytes=None, tokens_per_s=0.0) for i in range(4)]
    moves = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=5.0)
    assert [m.begins_s for m in moves] == [0.0, 4.0, 5.0, 5.0]


def test_what_ends_by_itself_in_time_stays_where_it_is() -> None:
    near = stream("near", lengths=(90,), limit=100)
    far = stream("far", lengths=(90,), limit=1000)
    unknown = stream("unknown", lengths=(90,), limit=91, tokens_per_s=0.0)
    moves = by_name(schedule([near, far, unknown], Rates(), UNKNOWN, now_s=0.0, end_s=5.0))
    assert {name: move.choice for name, move in moves.items()} == {
        "near": Choice.FINISH,
        "far": Choice.REPLAY,
        "unknown": Choice.REPLAY,
    }
    assert moves["near"].reason is Reason.LIMIT
    assert moves["near"].ends_s == pytest.approx(1.0)


def test_by_lengths_seen_so_far_the_tolerant_may_try_sooner() -> None:
    seen = AnswerLengths([20] * 8 + [2000] * 2)
    going = [stream(kind.value, priority=kind) for kind in PriorityClass]
    moves = by_name(schedule(going, Rates(), seen, now_s=0.0, end_s=10.0))
    assert {name: move.choice for name, move in moves.items()} == {
        "protected": Choice.REPLAY,
        "standard": Choice.REPLAY,
        "tolerant": Choice.FINISH,
    }
    assert moves["tolerant"].reason is Reason.LENGTHS
    before = {"standard": Choice.FINISH}
    again = by_name(schedule(going, Rates(), seen, now_s=0.0, end_s=10.0, before=before))
    assert again["standard"].choice is Choice.FINISH, "choices do not flutter"


def test_a_link_that_carries_less_carries_the_protected() -> None:
    kinds = list(PriorityClass) * 2
    going = [
        stream(f"{kind.value}-{i}", 1600, priority=kind, tokens_per_s=0.0)
        for i, kind in enumerate(kinds)
    ]
    cost = Rates(replay_positions_per_s=100.0, link_bytes_per_s=1.6e6)
    fast = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=10.0)
    assert {m.choice for m in fast} == {Choice.PUSH}
    order = [name.split("-")[0] for name in (m.generation_id for m in fast)]
    assert order == ["protected"] * 2 + ["standard"] * 2 + ["tolerant"] * 2
    slow = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=2.5)
    pushed = {m.generation_id.split("-")[0] for m in slow if m.choice is Choice.PUSH}
    assert pushed == {"protected"}
    assert {m.reason for m in slow if m.choice is Choice.REPLAY} == {Reason.LINK}


def test_what_is_computed_as_fast_is_not_sent() -> None:
    cost = Rates(replay_positions_per_s=1e6, link_bytes_per_s=1e9, push_s=0.01)
    (move,) = schedule([stream("g")], cost, UNKNOWN, now_s=0.0, end_s=10.0)
    assert (move.choice, move.reason) == (Choice.REPLAY, Reason.SHORT)


def test_where_time_is_short_the_protected_are_not_left_to_the_end_together() -> None:
    cost = Rates(replay_positions_per_s=100.0)
    going = [
        stream(f"{kind.value}-{i}", 400, bytes=None, tokens_per_s=0.0, priority=kind)
        for i, kind in enumerate(list(PriorityClass) * 2)
    ]
    moves = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=6.0)
    begins = {m.generation_id.split("-")[0]: m.begins_s for m in moves}
    assert begins == {"protected": 4.0, "standard": 6.0, "tolerant": 6.0}


def test_what_has_no_room_yet_stays_until_the_end() -> None:
    cost = Rates(replay_positions_per_s=100.0, room_positions=500.0)
    going = [stream(f"g{i}", 400, bytes=None, tokens_per_s=0.0) for i in range(2)]
    moves = schedule(going, cost, UNKNOWN, now_s=0.0, end_s=10.0)
    assert [m.reason for m in moves] == [Reason.NOTHING_TRAVELS, Reason.ROOM]
    assert [m.begins_s for m in moves] == [10.0, 10.0]


def test_the_log_is_told_choice_reason_bytes_and_what_is_computed() -> None:
    cost = Rates(replay_positions_per_s=100.0, link_bytes_per_s=1e6)
    (pushed,) = schedule([stream("g", 165)], cost, UNKNOWN, now_s=0.0, end_s=10.0)
    assert dict(pushed.attributes) == {
        "choice": "push",
        "reason": "its cache travels faster than it is computed",
        "bytes": "160000",
        "replayed_tokens": "32",
    }
