"""Blocks that go ahead of their generations, in rounds, while these run on where they are.

Pre-copy: Clark et al. 2005, Live Migration of Virtual Machines, section 3.2.

A round brings what has filled since the one before. When no sequence lacks more than one block, or
as much has filled during a round as it brought, another round would find as much: then they may be
sealed, and what is left is brought behind that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.exchange import KvMember
from services.engine.core.actions import SequenceKey
from services.engine.core.incoming import NamedBlock

MOST_FAILED = 3
"""Rounds in a row that an heir does not take: it gets no more."""
ONE_MORE = 1
"""Blocks that a sequence may lack when the copying ends."""
LAST_BLOCKS = 4
"""Who lacks no more than so many when it is sealed is sent them."""


@dataclass(frozen=True, slots=True)
class Heir:
    """Processes that are to go on with generations."""

    members: tuple[KvMember, ...]
    """Each with the layers that it will have of them."""
    generation_ids: frozenset[str]
    formation_id: str = ""
    """What they are, head first; empty: nothing yet, and have no caches."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Of one sequence."""

    key: SequenceKey
    heir: int
    blocks: tuple[NamedBlock, ...]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Blocks that go ahead together."""

    pieces: tuple[_Piece, ...]
    whole: bool = False
    """There were no more."""

    @property
    def blocks(self) -> tuple[NamedBlock, ...]:
        """Each once."""
        return tuple({name: block for one in self.pieces for name, block in one.blocks}.items())

    @property
    def names(self) -> dict[int, list[bytes]]:
        """By heir, each name once."""
        found: dict[int, dict[bytes, None]] = {}
        for one in self.pieces:
            found.setdefault(one.heir, {}).update((name, None) for name, _ in one.blocks)
        return {heir: list(names) for heir, names in found.items()}


class Copying:
    """Of some generations of one formation."""

    def __init__(self, heirs: Sequence[Heir], *, follows: bool = False) -> None:
        """What `follows` its sequences goes for as long as they run."""
        self.heirs = tuple(heirs)
        self.idle = False
        """Another round would have found as much as the last one, when it was asked what goes
        next."""
        self.over = False
        """The same, each had begun, and every heir took what it was sent."""
        self._follows = follows
        self._brought = 0
        """Blocks of the round before, if it brought all there were; else 0."""
        self._heir_of = {name: i for i, heir in enumerate(heirs) for name in heir.generation_ids}
        self._over: dict[SequenceKey, list[bytes]] = {}
        """Of each sequence, from its first block on."""
        self._cached: dict[SequenceKey, int] = {}
        self._rest: set[SequenceKey] = set()
        """Of these it was told."""
        self._failed: dict[int, int] = {}
        """Rounds in a row that heirs had no room for, or did not answer."""

    @property
    def blocks(self) -> int:
        """That all members of their heirs keep by now."""
        return _count(self._over.values())

    @property
    def blocks_of(self) -> dict[str, int]:
        """The same of each generation that has some; what its choices share counts once."""
        names = {key.generation_id: list[list[bytes]]() for key in self._over}
        for key, over in self._over.items():
            names[key.generation_id].append(over)
        return {name: _count(over) for name, over in names.items()}

    @property
    def cached(self) -> int:
        """Blocks that lie in caches by now."""
        return _count(self._over[key][:count] for key, count in self._cached.items())

    @property
    def taken(self) -> bool:
        """Every heir took what it was sent last."""
        return not self._failed

    @property
    def generation_ids(self) -> frozenset[str]:
        """Of those with an heir that takes blocks."""
        heirs = (h for i, h in enumerate(self.heirs) if self._failed.get(i, 0) < MOST_FAILED)
        return frozenset().union(*(heir.generation_ids for heir in heirs))

    def next(
        self,
        keys: Iterable[SequenceKey],
        full: Callable[[SequenceKey, int], Sequence[NamedBlock] | None],
        at_most: int,
    ) -> Ahead | None:
        """What goes over next, at most so many blocks, each once to an heir, of those sequences
        first that come first. `full` tells a sequence's full blocks from one of them on, or None
        for one that waits for its turn. None: another round would find as much as the last one."""
        lacking, begun, waiting = list[_Piece](), set[str](), set[str]()
        for key in keys:
            blocks = full(key, len(self._over.get(key, ())))
            there = blocks is not None or key in self._over
            (begun if there else waiting).add(key.generation_id)
            lacking.append(_Piece(key, self._heir_of[key.generation_id], tuple(blocks or ())))
        filled = len({(one.heir, name) for one in lacking for name, _ in one.blocks})
        brought, self._brought = self._brought, 0
        if all(len(one.blocks) <= ONE_MORE for one in lacking) or 0 < brought <= filled:
            self.idle, self.over = True, self.taken and waiting <= begun
            return None
        self.idle = self.over = False
        pieces, going = list[_Piece](), set[tuple[int, bytes]]()
        for one in lacking:
            count = 0
            for name, _ in one.blocks:
                if (one.heir, name) not in going and len(going) == at_most:
                    break
                going.add((one.heir, name))
                count += 1
            if count:
                pieces.append(_Piece(one.key, one.heir, one.blocks[:count]))
        return Ahead(tuple(pieces), whole=len(going) == filled)

    def copied(self, ahead: Ahead, there: set[int]) -> None:
        """These heirs keep all of it that is for them; the others may next time, and are given up
        where they do not."""
        missed = {one.heir for one in ahead.pieces} - there
        if ahead.whole and not missed and not self._follows:
            self._brought = len(
                {(one.heir, name) for one in ahead.pieces for name, _ in one.blocks}
            )
        for heir in missed:
            self._failed[heir] = self._failed.get(heir, 0) + 1
        for one in ahead.pieces:
            if one.heir in there:
                self._failed.pop(one.heir, None)
                self._over.setdefault(one.key, []).extend(name for name, _ in one.blocks)

    def for_caches(
        self, ahead: Ahead, there: set[int]
    ) -> dict[int, dict[SequenceKey, list[bytes]]]:
        """What may lie in caches of these heirs by now, by heir that has some: of each sequence of
        `ahead` all that is over."""
        found: dict[int, dict[SequenceKey, list[bytes]]] = {}
        for one in ahead.pieces:
            if one.heir in there and self.heirs[one.heir].formation_id:
                found.setdefault(one.heir, {})[one.key] = list(self._over[one.key])
        return found

    def rest(
        self, sealed: Mapping[SequenceKey, Sequence[bytes]]
    ) -> dict[int, dict[SequenceKey, Sequence[bytes]]]:
        """By heir, the names of all blocks of those of these sequences that lack their last ones
        alone; of each once."""
        found: dict[int, dict[SequenceKey, Sequence[bytes]]] = {}
        for key, names in sealed.items():
            over = len(self._over.get(key, ()))
            if over and key not in self._rest and 0 < len(names) - over <= LAST_BLOCKS:
                found.setdefault(self._heir_of[key.generation_id], {})[key] = names
                self._rest.add(key)
        return found

    def lie(self, cached: Mapping[SequenceKey, int]) -> None:
        """So many of these sequences' first blocks lie in caches."""
        self._cached.update(cached)


def _count(chains: Iterable[Iterable[bytes]]) -> int:
    """Names that are in any of them."""
    return len({name for names in chains for name in names})
