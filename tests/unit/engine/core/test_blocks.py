from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.core.blocks import BlockAllocator, OutOfBlocks, blocks_for


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


def test_a_block_given_back_twice_is_an_error() -> None:
    allocator = BlockAllocator(2)
    blocks = allocator.allocate(1)
    allocator.release(list(blocks))
    with pytest.raises(ValueError, match="free already"):
        allocator.release(blocks)


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_cover_positions(positions: int, blocks: int) -> None:
    assert blocks_for(positions) == blocks
