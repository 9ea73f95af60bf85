"""The blocks of sequences that begin alike: found when one comes, taken over while it is read, and
named as soon as they are full."""

from __future__ import annotations

from services.engine.backend import BLOCK_SIZE
from services.engine.core.blocks import BlockAllocator, blocks_for
from services.engine.core.sequence import BatchedSequence


class Sharing:
    """Gives sequences their blocks, as few anew as there can be."""

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks

    def found(self, sequence: BatchedSequence, index: int = 0) -> list[int]:
        """Blocks that hold what it goes on with from its block `index` on."""
        end = min(sequence.shareable, index + self._blocks.shares_left)
        return self._blocks.find(map(sequence.block_hash, range(index, end)))

    def lacking(self, sequence: BatchedSequence, found: list[int]) -> int:
        """Free blocks that it takes to enter: for all its ids and the one behind them."""
        fresh = blocks_for(len(sequence.tokens) + 1) - len(found)
        return fresh + self._blocks.idle_among(found)

    def enter(self, sequence: BatchedSequence, found: list[int]) -> None:
        """It has all its blocks, and these need not be computed."""
        self._blocks.share(found)
        fresh = blocks_for(len(sequence.tokens) + 1) - len(found)
        sequence.blocks = [*found, *self._blocks.allocate(fresh)]
        sequence.named = len(found)
        sequence.computed = len(found) * BLOCK_SIZE
        self._blocks.use.queried += len(sequence.tokens)
        self._blocks.use.hits += sequence.computed

    def reach(self, sequence: BatchedSequence, drafts: int, spared: int) -> int:
        """For how many drafts it has blocks, or gets some, if so many others stay free."""
        lacking = blocks_for(len(sequence.tokens) + drafts) - len(sequence.blocks)
        if 0 < lacking <= self._blocks.free_count - spared:
            sequence.blocks += self._blocks.allocate(lacking)
        return min(drafts, len(sequence.blocks) * BLOCK_SIZE - len(sequence.tokens))

    def take_over(self, sequence: BatchedSequence) -> None:
        """What others have computed since it came, it need not: two that begin alike and come
        together, and the choices of one request, read their prompt once."""
        index = sequence.computed // BLOCK_SIZE
        found = self.found(sequence, index)
        if not found:
            return
        sequence.named = index + len(found)
        self._blocks.share(found)
        self._blocks.release(sequence.blocks[index : sequence.named])
        sequence.blocks[index : sequence.named] = found
        self._blocks.use.hits += sequence.named * BLOCK_SIZE - sequence.computed
        sequence.computed = sequence.named * BLOCK_SIZE

    def name(self, sequence: BatchedSequence, step: int) -> None:
        """What it has handed to the stages by now, with this step, others may use from the next one
        on."""
        full = sequence.computed // BLOCK_SIZE
        while sequence.named < full and self._blocks.shares_left:
            index = sequence.named
            block, block_hash = sequence.blocks[index], sequence.block_hash(index)
            sequence.blocks[index] = self._blocks.name(block, block_hash, step)
            sequence.named += 1
