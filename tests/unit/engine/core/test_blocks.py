from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.core import blocks as blocks_module
from services.engine.core.blocks import BlockAllocator, CacheUse, OutOfBlocks, blocks_for


@given(st.integers(1, 20), st.lists(st.integers(-4, 8), max_size=60))
def test_no_block_is_handed_out_twice_and_all_come_back(count: int, moves: list[int]) -> None:
    allocator, held = BlockAllocator(count), [list[int]()]
    for move in moves:
        if move < 0:
            allocator.release(held.pop(-move % len(held)) if held else [])
            continue
        if move > allocator.free_count:
            with pytest.raises(OutOfBlocks):
                allocator.allocate(move)
            continue
        held.append(allocator.allocate(move))
        taken = [block for blocks in held for block in blocks]
        assert len(set(taken)) == len(taken) == allocator.used_count
        assert all(0 <= block < count for block in taken)
    for blocks in held:
        allocator.release(blocks)
    assert allocator.free_count == count
    assert sorted(allocator.allocate(count)) == list(range(count))


def test_who_wants_what_may_lie_in_a_place_takes_that_block_while_it_is_empty() -> None:
    """Others take it last, and what is no block of these counts for nothing."""
    allocator = BlockAllocator(6, places={b"a": 0, b"b": 1, b"c": 9})
    assert allocator.allocate(3) == [2, 3, 4]
    assert allocator.allocate(2, [b"c", b"b"]) == [5, 1]
    allocator = BlockAllocator(6, places={b"a": 0, b"b": 1})
    first = allocator.allocate(5)
    assert set(first) == {0, 2, 3, 4, 5}
    assert allocator.allocate(1, [b"a", b"b"]) == [1], "whose place is taken has another"
    allocator.release(first)
    assert 0 not in allocator.allocate(1, [b"a"]), "it was asked for, and may hold anything"
    with pytest.raises(OutOfBlocks):
        allocator.allocate(6, [b"a"])


def chain(text: str) -> list[bytes]:
    """The names of a text's blocks, a letter each."""
    return [text[:end].encode() for end in range(1, len(text) + 1)]


def take(allocator: BlockAllocator, text: str) -> tuple[list[int], int]:
    """Blocks for a text, as a sequence gets them, and how many were there."""
    names = chain(text)
    found = allocator.find(names)
    lacking = len(names) - len(found)
    if lacking + allocator.idle_among(found) > allocator.free_count:
        raise OutOfBlocks
    allocator.share(found)
    fresh = allocator.allocate(lacking)
    named = [allocator.name(b, name) for b, name in zip(fresh, names[len(found) :], strict=True)]
    return [*found, *named], len(found)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_block_is_one_text_for_all_who_use_it_and_no_end_outlives_its_beginning(
    seed: int,
) -> None:
    chance = Random(seed)
    count = chance.randint(4, 12)
    allocator = BlockAllocator(count)
    running: list[tuple[str, list[int]]] = []
    for _ in range(60):
        if running and chance.random() < 0.5:
            allocator.release(running.pop(chance.randrange(len(running)))[1])
        else:
            text = "".join(chance.choice("ab") for _ in range(chance.randint(1, 4)))
            try:
                blocks, _ = take(allocator, text)
            except OutOfBlocks:
                continue
            running.append((text, blocks))
        texts: dict[int, str] = {}
        for text, blocks in running:
            for end, block in enumerate(blocks, 1):
                assert texts.setdefault(block, text[:end]) == text[:end]
        uses = Counter(block for _, blocks in running for block in blocks)
        assert allocator._users == [uses[block] for block in range(count)]
        assert allocator.used_count == len(uses)
        assert allocator.shares_left == BlockAllocator(1).shares_left - (uses.total() - len(uses))
        held = set(allocator._by_hash)
        assert all(len(name) == 1 or name[:-1] in held for name in held)
        assert len(held) == len(allocator._hashes) <= count
    for _, blocks in running:
        allocator.release(blocks)
    assert (allocator.used_count, allocator.free_count) == (0, count)


def test_what_was_left_longest_ago_goes_first_and_of_it_the_end() -> None:
    allocator = BlockAllocator(4)
    for text in ("ab", "xy"):
        allocator.release(take(allocator, text)[0])
    assert allocator.cached_count == 4
    allocator.release(take(allocator, "ab")[0])
    allocator.release(allocator.allocate(1))
    assert [len(allocator.find(chain(text))) for text in ("ab", "xy")] == [2, 1]
    allocator.release(allocator.allocate(3))
    assert [len(allocator.find(chain(text))) for text in ("ab", "xy")] == [1, 0]
    assert allocator.take_use() == CacheUse(evicted=3)
    assert allocator.take_use() == CacheUse()


def test_empty_blocks_are_taken_before_any_that_holds_something() -> None:
    allocator = BlockAllocator(4)
    allocator.release(take(allocator, "ab")[0])
    allocator.release(allocator.allocate(2))
    assert len(allocator.find(chain("ab"))) == 2


def test_two_that_computed_the_same_go_on_with_one_block() -> None:
    allocator = BlockAllocator(4)
    one, other = allocator.allocate(1), allocator.allocate(1)
    assert allocator.name(one[0], b"a") == one[0]
    assert allocator.name(other[0], b"a") == one[0]
    assert (allocator.used_count, allocator.free_count) == (1, 3)
    allocator.release([one[0], one[0]])
    assert allocator.used_count == 0


def test_without_sharing_nothing_may_be_shared() -> None:
    assert BlockAllocator(4, sharing=False).shares_left == 0


def test_what_is_lent_beyond_the_limit_leaves_nothing_to_share_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_SHARES", 1)
    allocator = BlockAllocator(4)
    blocks, _ = take(allocator, "abc")
    left = [allocator.shares_left]
    allocator.share(blocks)
    left.append(allocator.shares_left)
    for block in blocks:
        allocator.release([block])
        left.append(allocator.shares_left)
    assert left == [1, 0, 0, 0, 1]


def test_a_block_given_back_twice_is_an_error() -> None:
    allocator = BlockAllocator(2)
    blocks = allocator.allocate(1)
    allocator.release(list(blocks))
    with pytest.raises(ValueError, match="free already"):
        allocator.release(blocks)


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_cover_positions(positions: int, blocks: int) -> None:
    assert blocks_for(positions) == blocks
