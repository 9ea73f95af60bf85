"""Which formations' blocks may still be had, and from whom, while their generations move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from services.common.exchange import KvMember, KvSource
from services.common.nodes import Member
from services.controller.core.departure.move import Choice, Move

Handover = Literal["auto", "replay", "kv"]
LEAST_S = 1.0
"""A node whose time is over is there for a moment yet."""
SLACK = 1.5
"""Blocks may take so much longer than the link was seen to need for them."""


@dataclass(slots=True)
class _Kept:
    source: KvSource
    node_ids: frozenset[str]
    pushed: set[str] | None = None
    """Those of its generations that were; None: all."""
    replayed: set[str] = field(default_factory=set)
    """Of these nothing is kept."""
    lasts_s: float = 0.0
    """What is kept may be had for so long behind the seal."""
    until_s: float = inf
    sealed: asyncio.Event = field(default_factory=asyncio.Event)
    """Or that failed."""

    def has(self, generation_id: str) -> bool:
        if generation_id in self.replayed:
            return False
        return self.pushed is None or generation_id in self.pushed


def kv_members(members: Iterable[Member]) -> tuple[KvMember, ...]:
    """As whoever moves blocks knows them."""
    return tuple(KvMember(m.address, m.incarnation, m.layers) for m in members)


def source_of(formation_id: str, members: Iterable[Member]) -> KvSource:
    """A formation, as whoever fetches its blocks knows it."""
    return KvSource(formation_id, kv_members(members))


class KvSources:
    """A memory of some seconds: whoever is not told computes what it goes on from."""

    def __init__(
        self,
        handover: Handover,
        keep_s: float,
        clock: Callable[[], float],
        members: Callable[[str], Sequence[Member]],
        *,
        fetch_s: float,
    ) -> None:
        """`keep_s` counts from when a formation is sealed, where blocks are over sooner; they may
        take `fetch_s`. `members` of a formation that lives."""
        self.handover: Handover = handover
        self.travels = handover != "replay"
        """Blocks go to where their generations go."""
        self._keep_s, self._clock, self._members = keep_s, clock, members
        self._fetch_s = max(keep_s, fetch_s)
        self._kept: dict[str, _Kept] = {}

    def longest_s(self, ends_at_s: float) -> float:
        """Blocks that leave nodes which are taken away then may travel for so long."""
        return max(LEAST_S, min(self._fetch_s, ends_at_s - self._clock()))

    def departs(self, formation_id: str, members: Sequence[Member]) -> None:
        """Generations leave a formation one by one; its stages keep what they have of those that
        are sealed to be pushed."""
        if self.travels and formation_id not in self._kept:
            self._kept[formation_id] = self._of(formation_id, members, set())

    def seals(self, formation_id: str, pushed: Collection[str], replayed: Collection[str]) -> None:
        """These leave it now."""
        kept = self._kept.get(formation_id)
        if kept is not None and kept.pushed is not None:
            kept.pushed.update(pushed)
            kept.replayed.update(replayed)

    def drains(
        self, formation_id: str, members: Sequence[Member], moves: Collection[Move]
    ) -> frozenset[str] | None:
        """A formation is being sealed. Its stages keep what they have, but of these generations,
        whose ids are read again; None: of all, where that is chosen for all that are known."""
        replayed = frozenset(m.generation_id for m in moves if m.choice is Choice.REPLAY)
        chosen_for_all = self.handover == "auto" and len(replayed) == len(moves)
        if not self.travels or (chosen_for_all and formation_id not in self._kept):
            return None
        kept = self._kept.setdefault(formation_id, self._of(formation_id, members, None))
        kept.pushed = None
        kept.replayed.update(replayed)
        travel_s = max((m.ends_s - m.begins_s for m in moves if m.choice is Choice.PUSH), default=0)
        kept.lasts_s = max(self._keep_s, min(self._fetch_s, SLACK * travel_s))
        return replayed

    def lasts_s(self, formation_id: str) -> float:
        """Its stages keep blocks for so long at least; 0: as they do anyway."""
        kept = self._kept.get(formation_id)
        return kept.lasts_s if kept is not None and kept.lasts_s > self._keep_s else 0.0

    def drained(self, formation_id: str, *, sealed: bool) -> None:
        """It is sealed, or that failed."""
        kept = self._kept.get(formation_id)
        if kept is not None:
            kept.until_s = self._clock() + (max(self._keep_s, kept.lasts_s) if sealed else 0.0)
            kept.sealed.set()

    def dissolved(self, formation_id: str) -> None:
        """It is no more, sealed or not."""
        kept = self._kept.get(formation_id)
        if kept is not None and kept.until_s == inf:
            self.drained(formation_id, sealed=True)

    def of(self, formation_id: str, generation_id: str, handed_on: bool) -> KvSource | None:
        """Where blocks of its generation may be had; what it `handed_on` has some whatever becomes
        of others, for as long as the formation lives."""
        now_s = self._clock()
        self._kept = {name: kept for name, kept in self._kept.items() if now_s < kept.until_s}
        kept = self._kept.get(formation_id)
        if kept is not None and kept.has(generation_id):
            if kept.lasts_s <= self._keep_s:
                return kept.source
            left_s = min(kept.lasts_s, kept.until_s - now_s)
            return replace(kept.source, fetch_s=max(self._keep_s, left_s))
        members = self._members(formation_id) if handed_on else ()
        return source_of(formation_id, members) if members else None

    async def over(self, node_id: str) -> None:
        """Returns when nobody is told any more that the node keeps something."""
        for kept in [kept for kept in self._kept.values() if node_id in kept.node_ids]:
            await kept.sealed.wait()
            await asyncio.sleep(kept.until_s - self._clock())

    @staticmethod
    def _of(formation_id: str, members: Sequence[Member], pushed: set[str] | None) -> _Kept:
        nodes = frozenset(member.node_id for member in members)
        return _Kept(source_of(formation_id, members), nodes, pushed)
