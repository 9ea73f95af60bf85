"""Physical KV blocks: which are free, and never one twice."""

from __future__ import annotations

from services.engine.backend import BLOCK_SIZE


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing was taken."""


def blocks_for(positions: int) -> int:
    """Blocks that cover this many positions."""
    return -(-positions // BLOCK_SIZE)


class BlockAllocator:
    """Hands out block ids 0 to count - 1; what was freed last is used first, while it is warm."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._used = bytearray(count)

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def used_count(self) -> int:
        return self.count - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks, or raises OutOfBlocks and takes none."""
        if count > len(self._free):
            raise OutOfBlocks
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._used[block] = 1
        return taken

    def release(self, blocks: list[int]) -> None:
        """Gives blocks back and empties the list; raises ValueError for one that is not taken."""
        while blocks:
            block = blocks.pop()
            if not self._used[block]:
                raise ValueError(f"block {block} is free already")
            self._used[block] = 0
            self._free.append(block)
