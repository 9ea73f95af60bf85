"""Finish, push or replay, and when: what becomes of the generations of a formation that has to go.

Two things are scarce, and each serves one move after another: the link, for blocks, and the next
heads' prefill, for what is computed anew. So each has a row of moves, laid out backwards from the
end (just in time: SpotServe, Miao et al. 2024, section 4.3), and a generation decodes on until its
turn has come. Laid out backwards, what waits longest before the end costs most, so the longest
moves stand first; of different classes the protected ones do, for they have what time there is to
be put right.

A push ends with its last block; its reader notices the last round alone, for blocks go over while
its formation decodes on. A replay needs its formation until its seal alone, so the last one may
begin there and be computed behind the end. That is why whatever turns out slower than thought can
still be replayed in time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from types import MappingProxyType

from services.common.generation import PriorityClass
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import (
    TAIL_POSITIONS,
    Choice,
    Move,
    Rates,
    Reason,
    Stream,
)

SURE = {PriorityClass.PROTECTED: 0.98, PriorityClass.STANDARD: 0.9, PriorityClass.TOLERANT: 0.6}
"""With such a chance to end in time one is left where it is. Being wrong costs it the time that it
waits behind others, never a token."""
LESS_SURE = 0.8
"""What was left where it is stays so down to this part of it: choices do not flutter."""
SLACK = 1.25
"""A push begins so much sooner than the link would do: blocks that come too late are computed."""
LATE_S = 0.25
"""And all of them by so much: who looks may be late, and then it takes a call to begin."""
PUSH_S = 0.1
"""What a push costs beside its tail, while none was seen: to copy its last blocks out of one cache,
over the link, and all of them into another."""
_ALL: Mapping[str, int] = MappingProxyType({})
_RANKS = {PriorityClass.PROTECTED: 0, PriorityClass.STANDARD: 1, PriorityClass.TOLERANT: 2}


def schedule(
    streams: Sequence[Stream],
    rates: Rates,
    lengths: AnswerLengths,
    *,
    now_s: float,
    end_s: float,
    before: Mapping[str, Choice] | None = None,
    begun: Collection[str] = (),
    always: bool = False,
) -> tuple[Move, ...]:
    """What becomes of each, in the order of their beginnings; all have left by `end_s`. `before` is
    what was chosen at the last look, `begun` the pushes on their way. Blocks that may travel do
    `always`, or where that spares their reader time."""
    before = before or {}
    asked = [_asked(stream, rates, lengths, now_s, end_s) for stream in streams]
    last_s = _last_s(rates, now_s, end_s)
    finish, going = list[Move](), list[_Asked]()
    for one in asked:
        reason = _finishes(one, before.get(one.name), last_s) if last_s > now_s else None
        if reason is None:
            going.append(one)
        else:
            ends_s = min(last_s, one.limit_at_s)
            finish.append(Move(one.name, Choice.FINISH, reason, inf, ends_s))
    room, left_s = rates.room_positions, end_s - now_s
    pushed, reasons = _pushed(going, room, left_s, frozenset(begun), always)
    pushes = _on_the_link(pushed, now_s, end_s, frozenset(begun))
    names = {one.name for one in pushed}
    replays = _replays([g for g in going if g.name not in names], reasons, rates, now_s, end_s)
    return (*sorted((*pushes, *replays), key=lambda move: move.begins_s), *finish)


def at_once(
    streams: Iterable[Stream],
    now_s: float,
    *,
    travels: bool,
    link_bytes_per_s: float = 0.0,
    left: Mapping[str, int] = _ALL,
) -> tuple[Move, ...]:
    """All of them leave now, with their blocks where these travel: what follows their formation
    waits for its nodes, or its time is over. Where the link is named, all blocks travel behind the
    seal, but for those named in `left` of which so many bytes do."""
    moves, ends_s = list[Move](), now_s
    for one in streams:
        if travels and one.bytes is not None:
            size_bytes = left.get(one.generation_id, one.bytes)
            ends_s += size_bytes / link_bytes_per_s if link_bytes_per_s else 0.0
            moves.append(_push_now(one, one.bytes, Reason.AT_ONCE, now_s, ends_s))
        else:
            moves.append(_replay_now(one, Reason.AT_ONCE, now_s))
    return tuple(moves)


def _push_now(one: Stream, size_bytes: int, reason: Reason, now_s: float, ends_s: float) -> Move:
    tail = min(one.positions, TAIL_POSITIONS)
    return Move(one.generation_id, Choice.PUSH, reason, now_s, ends_s, size_bytes, tail)


def _replay_now(one: Stream, reason: Reason, now_s: float) -> Move:
    return Move(one.generation_id, Choice.REPLAY, reason, now_s, now_s, 0, one.positions)


def cheapest(
    streams: Iterable[Stream], rates: Rates, now_s: float, left: Mapping[str, int] = _ALL
) -> tuple[Move, ...]:
    """All of them leave now, each as its reader waits least: with its blocks, all of which travel
    behind the seal, but for those named in `left` of which so many bytes do, and no more than a
    last round where the link is not named; or by its ids. The next heads compute one after another,
    the shortest first, so who is replayed waits for those that are shorter, too; and so does who is
    pushed for their blocks. Whose blocks would not be there in time for a fetch is replayed: the
    link is for those whose are."""
    moves, waits_s, link_s = list[Move](), 0.0, 0.0
    for one in sorted(streams, key=lambda stream: (stream.positions, stream.generation_id)):
        push_s = replace(rates, push_s=rates.push_s or PUSH_S).push_gap_s(one.positions)
        travel_s = 0.0
        if rates.link_bytes_per_s:
            travel_s = left.get(one.generation_id, one.bytes or 0) / rates.link_bytes_per_s
        push_s += link_s + travel_s if travel_s else 0.0
        shorter = waits_s + rates.replay_of_s(one.positions) <= push_s
        late = bool(travel_s) and link_s + travel_s > rates.fetch_s
        if one.bytes is None or shorter or late:
            waits_s += one.positions / rates.replay_positions_per_s
            reason = Reason.LINK if late else Reason.SHORT
            reason = Reason.NOTHING_TRAVELS if one.bytes is None else reason
            moves.append(_replay_now(one, reason, now_s))
        else:
            link_s += travel_s
            moves.append(_push_now(one, one.bytes, Reason.CHEAPER, now_s, now_s + link_s))
    return tuple(moves)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A stream, with what its moves would cost at the end at most."""

    stream: Stream
    name: str
    rank: int
    limit_at_s: float
    """When all its choices are at their limit."""
    chance: float
    """That it ends by itself before it is sealed at the latest."""
    positions: float
    link_s: float
    """Of the link, for its blocks and those that it fills until then; infinite where none
    travel."""
    replay_s: float
    saved_s: float
    """What a push spares its reader."""

    @property
    def expected_s(self) -> float:
        """Of its replay, which it may not need."""
        return self.replay_s * (1 - self.chance)


def _asked(
    stream: Stream, rates: Rates, lengths: AnswerLengths, now_s: float, end_s: float
) -> _Asked:
    rate, left = stream.tokens_per_s, stream.left
    tokens = rate * max(0.0, end_s - now_s)
    grown = sum(min(tokens, max(0, stream.limit - length)) for length in stream.lengths)
    positions = stream.positions + grown
    until_s = max(0.0, _last_s(rates, now_s, end_s) - now_s)
    link_s, link = inf, rates.link_bytes_per_s
    if stream.bytes is not None and link > 0:
        link_s = stream.bytes * (1 + grown / max(1, stream.positions)) / link + rates.push_s
    replay_s = rates.replay_of_s(positions)
    return _Asked(
        stream,
        stream.generation_id,
        _RANKS[stream.priority],
        now_s + (left / rate if rate else inf if left else 0.0),
        prod(lengths.ends_within(length, rate * until_s) for length in stream.lengths),
        positions,
        link_s,
        replay_s,
        replay_s - rates.push_gap_s(positions),
    )


def _last_s(rates: Rates, now_s: float, end_s: float) -> float:
    """When all that is there is sealed at the latest."""
    return max(now_s, end_s - rates.seal_s)


def _finishes(one: _Asked, before: Choice | None, last_s: float) -> Reason | None:
    """Why it may stay where it is; None: it has to leave."""
    if one.limit_at_s <= last_s:
        return Reason.LIMIT
    sure = SURE[one.stream.priority] * (LESS_SURE if before is Choice.FINISH else 1.0)
    return Reason.LENGTHS if one.chance >= sure else None


def _pushed(
    going: Iterable[_Asked], room: float, left_s: float, begun: frozenset[str], always: bool
) -> tuple[list[_Asked], dict[str, Reason]]:
    """Whose blocks travel, as many as the link carries: by class, and those first that a second of
    the link spares most. And why the others' do not."""
    reasons: dict[str, Reason] = {}
    may = []
    for one in going:
        if one.link_s == inf:
            reasons[one.name] = Reason.NOTHING_TRAVELS
        elif one.saved_s <= 0 and not always:
            reasons[one.name] = Reason.SHORT
        else:
            may.append(one)

    def worth(one: _Asked) -> tuple[bool, int, float, str]:
        return one.name not in begun, one.rank, -one.saved_s / max(one.link_s, 1e-9), one.name

    pushed, taken_s = list[_Asked](), 0.0
    for one in sorted(may, key=worth):
        over = one.name in begun and not one.stream.bytes
        if taken_s + one.link_s > left_s and not over:
            reasons[one.name] = Reason.LINK
        elif one.positions > room:
            reasons[one.name] = Reason.ROOM
        else:
            taken_s, room = taken_s + one.link_s, room - one.positions
            pushed.append(one)
    return pushed, reasons


def _on_the_link(
    pushed: Iterable[_Asked], now_s: float, end_s: float, begun: frozenset[str]
) -> list[Move]:
    """One after another, those on their way first; the others as late as a link would do that
    carries somewhat less."""
    order = sorted(pushed, key=lambda o: (o.name not in begun, o.rank, -o.link_s, o.name))
    latest, ends_s = list[float](), end_s - LATE_S
    for one in reversed(order):
        ends_s -= SLACK * one.link_s
        latest.append(ends_s)
    moves, free_s = list[Move](), now_s
    for one, latest_s in zip(order, reversed(latest), strict=True):
        moves.append(_push(one, free_s if one.name in begun else max(free_s, latest_s)))
        free_s = moves[-1].ends_s
    return moves


def _push(one: _Asked, begins_s: float) -> Move:
    tail = int(min(one.positions, TAIL_POSITIONS))
    ends_s = begins_s + one.link_s
    return Move(
        one.name, Choice.PUSH, Reason.CHEAPER, begins_s, ends_s, int(one.stream.bytes or 0), tail
    )


def _replays(
    replayed: Sequence[_Asked],
    reasons: Mapping[str, Reason],
    rates: Rates,
    now_s: float,
    end_s: float,
) -> list[Move]:
    """Each begins when the one before it is computed, the last as late as it can be sealed. Where
    time is too short for all of them the first begins now, and what is left at the end is sealed
    there together. So is what has no room: nothing computes it yet."""
    last_s = _last_s(rates, now_s, end_s)
    placed, room = list[_Asked](), rates.room_positions
    homeless, moves = list[_Asked](), list[Move]()
    for one in sorted(replayed, key=lambda o: (o.rank, -o.expected_s, o.name)):
        if one.positions <= room:
            placed.append(one)
            room -= one.positions
        else:
            homeless.append(one)
    if now_s + sum(one.expected_s for one in placed) <= last_s:
        placed.sort(key=lambda o: (-o.expected_s, o.name))  # there is time for every class
    begins_s = max(now_s, last_s - sum(one.expected_s for one in placed[:-1]))
    for one in placed:
        moves.append(_replay(one, min(begins_s, last_s), reasons[one.name], rates))
        begins_s += one.expected_s
    return moves + [_replay(one, last_s, Reason.ROOM, rates) for one in homeless]


def _replay(one: _Asked, begins_s: float, reason: Reason, rates: Rates) -> Move:
    ends_s = begins_s + rates.seal_s
    replayed = one.stream.positions
    return Move(one.name, Choice.REPLAY, reason, begins_s, ends_s, 0, replayed)
