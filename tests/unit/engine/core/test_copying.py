"""Blocks go ahead once each, nearest to their end first, until no sequence lacks more than one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.exchange import KvMember
from services.common.generation import LayerRange
from services.engine.core.actions import SequenceKey
from services.engine.core.copying import LAST_BLOCKS, MOST_FAILED, Copying, Heir
from services.engine.core.incoming import NamedBlock

MEMBERS = (KvMember("a:1", "i", LayerRange(0, 4)),)


def key(name: str) -> SequenceKey:
    return SequenceKey(name, 1, 0)


class Cache:
    """What sequences have filled."""

    def __init__(self, **filled: int) -> None:
        self.filled = filled

    def full(self, one: SequenceKey, start: int) -> list[NamedBlock]:
        name = one.generation_id
        return [(f"{name}{i}".encode(), i) for i in range(start, self.filled[name])]


def copying(*generations: str) -> Copying:
    return Copying([Heir(MEMBERS, frozenset({name})) for name in generations])


def test_those_that_come_first_go_first_as_far_as_a_round_has_room() -> None:
    cache, going = Cache(a=3, b=4), copying("a", "b")
    ahead = going.next([key("a"), key("b")], cache.full, 5)
    assert ahead is not None
    assert ahead.names == {0: [b"a0", b"a1", b"a2"], 1: [b"b0", b"b1"]}
    going.copied(ahead, {0, 1})
    ahead = going.next([key("a"), key("b")], cache.full, 5)
    assert ahead is not None
    assert ahead.names == {1: [b"b2", b"b3"]}
    going.copied(ahead, {1})
    assert going.blocks == 7
    assert going.next([key("a"), key("b")], cache.full, 5) is None


def test_who_lacks_one_block_is_not_waited_for() -> None:
    cache, going = Cache(a=1, b=1), copying("a", "b")
    assert going.next([key("a"), key("b")], cache.full, 5) is None
    assert going.next([], cache.full, 5) is None
    cache.filled["b"] = 2
    ahead = going.next([key("a"), key("b")], cache.full, 5)
    assert ahead is not None
    assert [name for name, _ in ahead.blocks] == [b"a0", b"b0", b"b1"]


def test_who_is_sealed_is_sent_its_last_blocks_once() -> None:
    cache, going = Cache(a=3, b=2, c=2, d=1), copying("a", "b", "c", "d")
    ahead = going.next([key("a"), key("b"), key("c")], cache.full, 9)
    assert ahead is not None
    going.copied(ahead, {0, 1, 2})

    def names(one: str, count: int) -> list[bytes]:
        return [f"{one}{i}".encode() for i in range(count)]

    sealed = {
        key("a"): names("a", 4),
        key("b"): names("b", 2 + LAST_BLOCKS + 1),  # as much is fetched
        key("c"): names("c", 2),  # lacks nothing
        key("d"): names("d", 1),  # nothing went ahead
    }
    assert going.rest(sealed) == {0: {key("a"): names("a", 4)}}
    assert going.rest(sealed) == {}


def test_an_heir_that_does_not_answer_gets_no_more() -> None:
    cache, going = Cache(a=4, b=4), copying("a", "b")
    ahead = going.next([key("a"), key("b")], cache.full, 4 * 2)
    assert ahead is not None
    going.copied(ahead, {1})
    for _ in range(MOST_FAILED - 1):
        assert (going.generation_ids, going.blocks) == ({"a", "b"}, 4)
        ahead = going.next([key("a"), key("b")], cache.full, 4 * 2)
        assert ahead is not None
        assert ahead.names == {0: [b"a0", b"a1", b"a2", b"a3"]}
        going.copied(ahead, set())
    assert going.generation_ids == {"b"}
    assert going.next([key("b")], cache.full, 8) is None
    assert not going.over


def test_an_heir_that_was_silent_once_gets_the_same_again() -> None:
    cache, going = Cache(a=4), copying("a")
    for there in (set[int](), set[int](), {0}, set[int](), set[int](), {0}):
        ahead = going.next([key("a")], cache.full, 2)
        assert ahead is not None
        going.copied(ahead, there)
    assert (going.blocks, going.generation_ids) == (4, {"a"})
    assert going.next([key("a")], cache.full, 2) is None
    assert going.over


def test_all_that_is_over_may_lie_in_the_caches_of_heirs_that_stand() -> None:
    cache, members = Cache(a=3, b=4), MEMBERS
    going = Copying([Heir(members, frozenset("a")), Heir(members, frozenset("b"), "f")])
    for room in (5, 5):
        ahead = going.next([key("a"), key("b")], cache.full, room)
        assert ahead is not None
        going.copied(ahead, {0, 1})
        over = going.for_caches(ahead, {0, 1})
    assert over == {1: {key("b"): [b"b0", b"b1", b"b2", b"b3"]}}
    assert going.for_caches(ahead, {0}) == {}
    going.lie({key("b"): 2})
    going.lie({key("b"): 3})
    assert going.cached == 3


def test_sequences_that_share_blocks_send_them_once() -> None:
    going = Copying([Heir(MEMBERS, frozenset({"a", "b"}))])
    ahead = going.next([key("a"), key("b")], lambda _, start: [(b"x", 1), (b"y", 2)][start:], 9)
    assert ahead is not None
    assert (ahead.names, ahead.blocks) == ({0: [b"x", b"y"]}, ((b"x", 1), (b"y", 2)))


def key_of(choice: int) -> SequenceKey:
    return SequenceKey("g", 1, choice)


def test_what_choices_share_counts_once() -> None:
    """Three blocks of a prompt, and two of each choice behind them."""
    going = copying("g")

    def full(one: SequenceKey, start: int) -> list[NamedBlock]:
        own = [(f"{one.choice} {i}".encode(), 10 * one.choice + i) for i in range(2)]
        return [*[(f"{i}".encode(), 90 + i) for i in range(3)], *own][start:]

    keys = [key_of(0), key_of(1)]
    ahead = going.next(keys, full, 6)
    assert ahead is not None
    assert ahead.names == {0: [b"0", b"1", b"2", b"0 0", b"0 1", b"1 0"]}
    going.copied(ahead, {0})
    going.lie({key_of(0): 5, key_of(1): 4})
    assert (going.blocks, going.blocks_of, going.cached) == (6, {"g": 6}, 6)
    assert going.next(keys, full, 6) is None
    assert going.over


def test_where_as_much_fills_as_goes_another_round_is_not_worth_it() -> None:
    """Of one that follows its sequence all goes; what nobody took goes again."""
    for follows, rounds in ((False, [6, 3, 2]), (True, [6, 3, 2, 2, 2])):
        cache, sent = Cache(a=6), list[int]()
        going = Copying([Heir(MEMBERS, frozenset({"a"}))], follows=follows)
        while len(sent) < 5 and (ahead := going.next([key("a")], cache.full, 9)) is not None:
            assert not going.over
            sent.append(len(ahead.blocks))
            going.copied(ahead, {0})
            cache.filled["a"] += (3, 2)[min(1, len(sent) - 1)]
        assert sent == rounds
        assert going.over is not follows
    ahead = copying("a").next([key("a")], cache.full, 4)
    assert ahead is not None


def test_what_no_heir_took_or_no_round_had_room_for_goes_on() -> None:
    cache, going = Cache(a=4), copying("a")
    for room, there in ((9, set[int]()), (3, {0}), (1, {0})):
        ahead = going.next([key("a")], cache.full, room)
        assert ahead is not None
        going.copied(ahead, there)
        cache.filled["a"] += 1
    assert going.blocks == 4
    assert going.next([key("a")], cache.full, 9) is not None


def test_one_that_waits_for_its_turn_is_over_no_sooner_than_it_has_begun() -> None:
    going, blocks = copying("a", "b"), dict[str, list[NamedBlock] | None](a=[(b"a", 1)], b=None)

    def full(one: SequenceKey, start: int) -> list[NamedBlock] | None:
        own = blocks[one.generation_id]
        return own[start:] if own is not None else None

    keys = [key("a"), key("b")]
    assert going.next(keys, full, 5) is None
    assert not going.over
    assert going.taken
    blocks["b"] = [(b"b0", 2), (b"b1", 3)]
    ahead = going.next(keys, full, 5)
    assert ahead is not None
    going.copied(ahead, {0, 1})
    blocks["b"] = None  # its room was wanted; what is over is
    assert going.next(keys, full, 5) is None
    assert going.over


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_every_block_goes_once_and_in_order(grown: list[int], at_most: int) -> None:
    cache, going, sent = Cache(a=0), copying("a"), list[bytes]()
    for more in [*grown, *[0] * (3 * len(grown))]:
        cache.filled["a"] += more
        ahead = going.next([key("a")], cache.full, at_most)
        if ahead is not None:
            assert 0 < len(ahead.blocks) <= at_most
            sent += [name for name, _ in ahead.blocks]
            going.copied(ahead, {0})
    assert sent == [f"a{i}".encode() for i in range(len(sent))]
    assert cache.filled["a"] - len(sent) <= 1
    assert going.blocks == len(sent)
