"""Physical KV blocks: who uses which, what those hold that are full, and never one for two texts.

A full block whose rows were handed to the stages is named by the hash of its ids
(`services.common.prefix`), and whoever comes with the same beginning uses it, too. Stages work
steps in the order they got them, so it may be used from the next step on: it need not have come
back.

What nobody uses any more keeps what it holds until its room is wanted; then the block goes that was
left longest ago. A sequence leaves its last block first, and whoever uses a block uses all those
before it. So no block goes before those that go on from it, and none is kept that nobody can reach.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.engine.backend import BLOCK_SIZE
from services.engine.core.prefix_log import PrefixLog

MAX_SHARES = 1 << 18
"""How often blocks may be in one more table than their first, all together: a step carries all its
sequences' tables."""


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing was taken."""


def blocks_for(positions: int) -> int:
    """Blocks that cover this many positions."""
    return -(-positions // BLOCK_SIZE)


@dataclass(slots=True)
class CacheUse:
    """What was looked for among the blocks that are there, and what became of them."""

    queried: int = 0
    """Positions of sequences that came, or came back."""
    hits: int = 0
    """Those of them that were there."""
    evicted: int = 0
    """Blocks that lost what they held."""

    def add(self, other: CacheUse) -> None:
        """Counts what another one has counted."""
        self.queried += other.queried
        self.hits += other.hits
        self.evicted += other.evicted


class BlockAllocator:
    """Hands out block ids 0 to count - 1; of the empty ones, what was freed last is used first,
    while it is warm. With `sharing` off, nothing outlives its sequence."""

    def __init__(
        self, count: int, *, sharing: bool = True, places: Mapping[bytes, int] | None = None
    ) -> None:
        """Blocks of some names may lie in their `places` already: who wants one takes that block as
        long as it is empty."""
        self.count = count
        self.log = PrefixLog()
        """Which hashes are held, for routers."""
        self._places = dict(places or {})
        kept = set(self._places.values())
        self._empty = dict.fromkeys(
            sorted(range(count - 1, -1, -1), key=lambda block: block not in kept)
        )
        """The last one goes first."""
        self._users = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Named blocks that nobody uses, those first that were left longest ago."""
        self._hashes: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        self._named_by = [0] * count
        """The step that brings what each named block holds."""
        self._most_shares = MAX_SHARES if sharing else 0
        self._shares = 0
        """How often blocks are in one more use than their first."""
        self.use = CacheUse()

    @property
    def free_count(self) -> int:
        """Blocks that nobody uses, whatever they hold."""
        return len(self._empty) + len(self._idle)

    @property
    def used_count(self) -> int:
        return self.count - self.free_count

    @property
    def cached_count(self) -> int:
        """Blocks that nobody uses and that would be found again."""
        return len(self._idle)

    @property
    def shares_left(self) -> int:
        """So often a block may still be given to one more. What is lent or kept for others counts,
        and is not bound by it: no step carries a table of theirs."""
        return max(0, self._most_shares - self._shares)

    def allocate(self, count: int, names: Sequence[bytes] = ()) -> list[int]:
        """Takes `count` blocks whose contents count for nothing, or raises OutOfBlocks and takes
        none. Of those that are to hold what goes by these names the first ones are in their
        places, where these are empty."""
        if count > self.free_count:
            raise OutOfBlocks
        while len(self._empty) < count:
            self._evict()
        taken = [self._take(name) for name in names[:count]] if self._places else []
        taken += [self._empty.popitem()[0] for _ in range(count - len(taken))]
        for block in taken:
            self._users[block] = 1
        return taken

    def _take(self, name: bytes) -> int:
        block = self._places.pop(name, None)
        if block is None or block not in self._empty:
            return self._empty.popitem()[0]
        del self._empty[block]
        return block

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest beginning of this chain; they are not taken yet."""
        found = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these nobody uses: to share them takes them from what is free."""
        return sum(block in self._idle for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One more uses each of these, which were found."""
        for block in blocks:
            if not self._users[block]:
                del self._idle[block]
            else:
                self._shares += 1
            self._users[block] += 1

    def name(self, block: int, block_hash: bytes, step: int = 0) -> int:
        """A block that is taken holds the ids of this hash once that step is back; 0: it does.
        Returns the block to go on with: where another one has the hash already that one, and this
        one is given back."""
        held = self._by_hash.setdefault(block_hash, block)
        if held != block:
            self.share((held,))
            self.release([block])
            return held
        self._hashes[block], self._named_by[block] = block_hash, step
        self.log.add(block_hash)
        return block

    def named_by(self, blocks: Iterable[int]) -> int:
        """The last step that brings what these hold; 0: all is there."""
        return max((self._named_by[block] for block in blocks), default=0)

    def release(self, blocks: list[int]) -> None:
        """Gives blocks back, the last one first, and empties the list; raises ValueError for one
        that nobody has."""
        while blocks:
            block = blocks.pop()
            if not self._users[block]:
                raise ValueError(f"block {block} is free already")
            self._users[block] -= 1
            if self._users[block]:
                self._shares -= 1
            elif block in self._hashes:
                self._idle[block] = None
            else:
                self._empty[block] = None

    def take_use(self) -> CacheUse:
        """What happened since the last call."""
        use, self.use = self.use, CacheUse()
        return use

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        block_hash = self._hashes.pop(block)
        del self._by_hash[block_hash]
        self.log.remove(block_hash)
        self._empty[block] = None
        self.use.evicted += 1
