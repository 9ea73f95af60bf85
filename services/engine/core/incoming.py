"""Sequences that go on from blocks of other stages: they wait for them, and then start.

The blocks are taken at once, and filled by each stage on its own, beside the steps. So two orders
hold. A step that carries a block's last owner may still be on its way to a later stage: blocks are
fetched only when all steps that had departed before are back. And a stage that did not answer may
write yet: what it was told to fill stays taken for as long as the formation lives. Blocks that are
filled at every stage are named, like computed ones, and the sequence finds them when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.common.exchange import KvSource
from services.common.prefix import next_hash, root_of
from services.engine.backend import BLOCK_SIZE
from services.engine.core.actions import SequenceKey, StartSequence
from services.engine.core.scheduler import Scheduler

NamedBlock = tuple[bytes, int]
"""A block of a formation's caches, behind the name of what it holds."""
FEWEST_BLOCKS = 2
"""Fewer are computed sooner than asked for."""


@dataclass(frozen=True, slots=True)
class KvFetch:
    """Every stage: have these blocks hold what goes by these names; answer with
    `Batching.fetched`."""

    number: int
    source: KvSource
    blocks: tuple[NamedBlock, ...]
    """Names in order, each with the block that it is to lie in."""


@dataclass(slots=True)
class _Awaited:
    start: StartSequence
    fetch: KvFetch
    there: list[int]
    """Blocks that hold what comes before."""
    behind: int
    """The last step that had departed."""
    told: bool = False
    stopped: bool = False
    unread: bool = False


def names_of(start: StartSequence) -> list[bytes]:
    """Of its full blocks, but for its last id: that is always computed."""
    ids = (*start.request.prompt_ids, *start.output_ids)
    names, parent = [], root_of(start.request)
    for end in range(BLOCK_SIZE, len(ids), BLOCK_SIZE):
        parent = next_hash(parent, ids[end - BLOCK_SIZE : end])
        names.append(parent)
    return names


class Incoming:
    """Those of one formation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._awaited: dict[int, _Awaited] = {}
        self._number = 0

    def __len__(self) -> int:
        """Sequences that wait."""
        return sum(not one.stopped for one in self._awaited.values())

    def holds_back(self, start: StartSequence) -> bool:
        """It waits for blocks; False: there are none to wait for, or no room for them."""
        if start.source is None or not self._scheduler.settings.share_prefixes:
            return False
        names = names_of(start)
        there, fresh = self._scheduler.take_beginning(names)
        if len(fresh) < FEWEST_BLOCKS:
            self._scheduler.give_beginning(there, fresh, ())
            return False
        self._number += 1
        blocks = tuple(zip(names[len(there) :], fresh, strict=False))
        fetch = KvFetch(self._number, start.source, blocks)
        self._awaited[self._number] = _Awaited(start, fetch, there, self._scheduler.last_step)
        return True

    def due(self) -> tuple[KvFetch, ...]:
        """What may be fetched by now; each is told once."""
        found = [
            one
            for one in self._awaited.values()
            if not one.told and self._scheduler.is_back(one.behind)
        ]
        for one in found:
            one.told = True
        return tuple(one.fetch for one in found)

    def fetched(self, number: int, count: int | None) -> tuple[StartSequence, bool] | None:
        """The first `count` blocks hold what they should, at every stage; None: some stage did not
        answer. Returns what starts now, and whether it is unread."""
        one = self._awaited.pop(number, None)
        if one is None:
            return None
        if count is None:  # nobody writes to what was there before
            self._scheduler.give_beginning(one.there, (), ())
        else:
            names = [name for name, _ in one.fetch.blocks[:count]]
            fresh = [block for _, block in one.fetch.blocks]
            self._scheduler.give_beginning(one.there, fresh, names)
        return None if one.stopped else (replace(one.start, source=None), one.unread)

    def stop(self, key: SequenceKey) -> None:
        """It starts no more; its blocks are given back when the stages have answered."""
        for number, one in list(self._awaited.items()):
            if one.start.key != key:
                continue
            one.stopped = True
            if not one.told:
                self.fetched(number, 0)

    def set_unread(self, key: SequenceKey, unread: bool) -> None:
        """Whether anybody reads it."""
        for one in self._awaited.values():
            if one.start.key == key:
                one.unread = unread
