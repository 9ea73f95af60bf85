"""Sequences that go on from blocks of other stages: they wait for them, and then start.

Blocks may come ahead of their sequence. Then they lie in the caches as what was computed does,
under their names and until their room is wanted, and the sequence finds them.

The blocks are taken at once, and filled by each stage on its own, beside the steps. So two orders
hold. A step that carries a block's last owner may still be on its way to a later stage: blocks are
fetched only when all steps that had departed before are back. And a stage that did not answer may
write yet: what it was told to fill stays taken until every stage has said that it writes no more.
Blocks that are filled at every stage are named, like computed ones, and the sequence finds them
when it starts.

The beginning of a prompt may come from another pipeline's prefix cache in the same way. Choices of
one request, and requests that begin alike and come together, wait for one fetch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from services.common.exchange import KvSource, PrefixHolder
from services.common.prefix import next_hash, owner_of, root_of
from services.engine.backend import BLOCK_SIZE
from services.engine.core.actions import SequenceKey, StartSequence
from services.engine.core.prefix_fetching import PrefixFetching
from services.engine.core.scheduler import Scheduler

NamedBlock = tuple[bytes, int]
"""A block of a formation's caches, behind the name of what it holds."""
FEWEST_BLOCKS, FAR_BLOCKS = 2, 128
"""Fewer are computed sooner than asked for, but for one behind so many others: the further behind,
the longer a row takes."""


@dataclass(frozen=True, slots=True)
class KvFetch:
    """Every stage: have these blocks hold what goes by these names; answer with
    `Batching.fetched`."""

    number: int
    source: KvSource
    """Of a prompt's beginning nobody yet: its holder is to say who."""
    blocks: tuple[NamedBlock, ...]
    """Names in order, each with the block that it is to lie in."""
    holder: PrefixHolder | None = None
    """Who is to offer these first."""

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.blocks]

    def owners(self, count: int | None) -> set[bytes]:
        """Whose own some of the first so many are."""
        names = (name for name, _ in self.blocks[: count or 0])
        return {owner for name in names if (owner := owner_of(name))}


@dataclass(slots=True)
class _Waiting:
    start: StartSequence
    unread: bool = False


@dataclass(slots=True)
class _Awaited:
    fetch: KvFetch
    there: list[int]
    """Blocks that hold what comes before."""
    behind: int
    """The last step that had departed."""
    ahead: bool = False
    """What is to start with them is to come."""
    waiting: list[_Waiting] = field(default_factory=list)
    told: bool = False


def names_of(start: StartSequence) -> list[bytes]:
    """Of its full blocks, but for its last id: that is always computed. Each is made once."""
    prompt, names = start.request.prompt_ids, start.names
    count = max(0, len(prompt) + len(start.output_ids) - 1) // BLOCK_SIZE
    if len(names) < count:
        ids = (*prompt, *start.output_ids)
        parent = names[-1] if names else root_of(start.request)
        for end in range((len(names) + 1) * BLOCK_SIZE, len(ids), BLOCK_SIZE):
            parent = next_hash(parent, ids[end - BLOCK_SIZE : end])
            names.append(parent)
    return names[:count]


class Incoming:
    """Those of one formation."""

    def __init__(
        self, scheduler: Scheduler, numbers: Iterator[int], prefixes: PrefixFetching
    ) -> None:
        """`numbers` are for all that stages are asked to do to blocks of the formation; `prefixes`
        knows what of other pipelines' is worth fetching."""
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._awaited: dict[int, _Awaited] = {}
        self._numbers = numbers
        self._unanswered: dict[int, list[int]] = {}
        """Blocks of fetches that some stage has not answered."""
        self._ahead: dict[bytes, None] = {}
        """Names of what came ahead; as many as there are blocks, the latest ones."""
        self._rounded: dict[bytes, None] = {}
        """Owners of blocks that came rounded; as many as there are blocks, the latest ones."""

    def holds_back(self, start: StartSequence, now_s: float) -> bool:
        """It waits for blocks; False: there are none worth waiting for, or no room for them."""
        if not self._scheduler.settings.share_prefixes:
            return False
        if start.source is not None:
            names = names_of(start)
            fewest = 1 if len(names) > FAR_BLOCKS else FEWEST_BLOCKS
            number = self._awaits_any((names,), start.source, fewest)
        elif start.holder is not None:
            number = self._awaits_prefix(start, start.holder, now_s)
        else:
            return False
        if number is not None:
            self._awaited[number].waiting.append(_Waiting(start))
        return number is not None

    def _awaits_prefix(
        self, start: StartSequence, holder: PrefixHolder, now_s: float
    ) -> int | None:
        """The fetch of what the caches lack of its beginning, be it one that others wait for."""
        names = names_of(start)[: holder.positions // BLOCK_SIZE]
        there = len(self._scheduler.blocks.find(names))
        fetches = [one.fetch for one in self._awaited.values() if one.fetch.holder is not None]
        for fetch in fetches:
            if fetch.names[:1] == names[there : there + 1]:
                return fetch.number
        if len(fetches) >= self._prefixes.settings.at_once:
            return None
        worth = self._prefixes.worth(holder, len(names) - there, self._scheduler, now_s)
        if worth is None:
            return None
        source = KvSource(holder.formation_id, (), worth.limit_s)
        return self._awaits_any((names[: there + worth.blocks],), source, 1, holder)

    def take_ahead(self, chains: Sequence[Sequence[bytes]], source: KvSource) -> int | None:
        """Has what these sequences, which are to come, lack of their blocks come as far as there is
        room, those first that come first. The number of the fetch; None where there is none."""
        if not self._scheduler.settings.share_prefixes:
            return None
        number = self._awaits_any(chains, source, 1)
        if number is not None:
            self._awaited[number].ahead = True
        return number

    def awaits(self, number: int | None) -> bool:
        """The blocks of a fetch are still to come."""
        return number in self._awaited

    def came_ahead(self, start: StartSequence) -> bool:
        """Most of its blocks are there, and came for it: those that it has in common with others
        may have come for them."""
        if not self._ahead:
            return False
        names = names_of(start)
        there = len(self._scheduler.blocks.find(names))
        return 2 * there > len(names) and names[there - 1] in self._ahead

    def _awaits_any(
        self,
        chains: Sequence[Sequence[bytes]],
        source: KvSource,
        fewest: int,
        holder: PrefixHolder | None = None,
    ) -> int | None:
        there, blocks = list[int](), dict[bytes, int]()
        for names in chains:
            found = self._scheduler.take_found(names)
            there += found
            lacking = [name for name in names[len(found) :] if name not in blocks]
            blocks.update(zip(lacking, self._scheduler.take_free(lacking), strict=False))
        if len(blocks) < fewest:
            self._scheduler.give_beginning(there, tuple(blocks.values()), ())
            return None
        number = next(self._numbers)
        fetch = KvFetch(number, source, tuple(blocks.items()), holder)
        self._awaited[number] = _Awaited(fetch, there, self._scheduler.last_step)
        return number

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

    def came_rounded(self, start: StartSequence) -> bool:
        """Some of its generation's blocks did, and may be there."""
        return owner_of(root_of(start.request)) in self._rounded

    def fetched(
        self, number: int, count: int | None, *, rounded: bool = False
    ) -> list[tuple[StartSequence, bool]]:
        """The first `count` blocks hold what they should, at every stage; None: some stage did not
        answer. Some of what may be was `rounded`. Returns what starts now, and whether it is
        unread."""
        one = self._awaited.pop(number, None)
        if one is None:
            return []
        if rounded:
            owners = one.fetch.owners(count)
            _note_latest(self._rounded, owners, self._scheduler.blocks.count)
        if count is None:  # nobody writes to what was there before
            self._scheduler.give_beginning(one.there, (), ())
            self._unanswered[number] = [block for _, block in one.fetch.blocks]
        else:
            names = [name for name, _ in one.fetch.blocks[:count]]
            fresh = [block for _, block in one.fetch.blocks]
            self._scheduler.give_beginning(one.there, fresh, names)
            if one.ahead:
                _note_latest(self._ahead, names, self._scheduler.blocks.count)
        return [(replace(w.start, source=None, holder=None), w.unread) for w in one.waiting]

    def ended(self, number: int) -> None:
        """No stage writes to the blocks of this fetch any more: what they hold counts for
        nothing."""
        self._scheduler.give_beginning((), self._unanswered.pop(number, ()), ())

    def stop(self, key: SequenceKey) -> None:
        """It starts no more; its blocks are given back when the stages have answered."""
        for number, one in list(self._awaited.items()):
            left = [waiting for waiting in one.waiting if waiting.start.key != key]
            if len(left) == len(one.waiting):
                continue
            one.waiting = left
            if not (left or one.told):
                self.fetched(number, 0)

    def set_unread(self, key: SequenceKey, unread: bool) -> None:
        """Whether anybody reads it."""
        for one in self._awaited.values():
            for waiting in one.waiting:
                if waiting.start.key == key:
                    waiting.unread = unread


def _note_latest(noted: dict[bytes, None], names: Iterable[bytes], most: int) -> None:
    for name in names:
        noted.pop(name, None)
        noted[name] = None
    for name in list(noted)[:-most]:
        del noted[name]
