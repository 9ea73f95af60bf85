"""Blocks on their way: ahead of generations that are to go on elsewhere, behind the seal of those
that were drained, and to the stages of the formation that is headed here.

Which blocks these are, the cores say (`core.copying`, `core.incoming`). Here stages are asked and
waited for, and asked to leave blocks alone where they do not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from services.common.errors import FailedPrecondition
from services.common.exchange import KvSource
from services.engine.core.actions import SequenceKey
from services.engine.core.batching import Batching, Due
from services.engine.core.copying import LAST_BLOCKS, Copying, Heir
from services.engine.core.incoming import KvFetch, names_of
from services.engine.core.lead import Leaving
from services.engine.core.resting import AheadSettings, Resting
from services.engine.core.scheduler import Scheduler
from services.engine.formation import FormationPart
from services.engine.kv_exchange import MAX_NAMES
from services.engine.kv_moves import Brought, KvMoves
from services.engine.prefix_fetch import brought_from

_log = logging.getLogger(__name__)
AHEAD_BYTES = 16 << 20
"""Blocks that go ahead in one round, of all stages together: what is lent to stages no step may
have, and behind each round decoding has its turn."""
END_AGAIN_S = 1.0
"""A stage that does not say that it leaves blocks alone is asked again."""
COPYING_AGAIN_S = 2.0
"""Who asks again this soon for blocks to go ahead goes on where it was."""
REST_S = 1.0
"""Last blocks are where they are wanted by then, or are fetched."""


@dataclass(frozen=True, slots=True)
class _Round:
    """What came of blocks that went together."""

    size_bytes: int
    """From process to process."""
    full: bool
    """A stage here, or an heir, had no room for all of them."""


@dataclass(slots=True)
class Copied:
    """What has gone ahead of its generations."""

    rounds: int = 0
    blocks: int = 0
    cached: int = 0
    """Those of them that lie in caches."""
    size_bytes: int = 0
    """From process to process."""
    took_s: float = 0.0
    over: bool = False
    """Each has begun, and another round would find as much as the last one."""
    full: bool = False
    """Of the last round somebody had no room for all that was for him to keep."""
    blocks_of: Mapping[str, int] = field(default_factory=dict)
    """The blocks, by generation."""


class BlockMoves:
    """What moves of the blocks of one head."""

    def __init__(
        self,
        batching: Batching,
        kv: KvMoves,
        ahead: AheadSettings,
        *,
        formation: Callable[[], FormationPart | None],
        do: Callable[[Due], None],
        changed: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        """`formation` is the one that is headed, `do` carries out what the cores answer, `changed`
        is set whenever anything has happened."""
        self._batching = batching
        self._kv = kv
        self._ahead = ahead
        self._resting = Resting(ahead)
        self._headed = formation
        self._do = do
        self._changed = changed
        self._clock = clock
        self._copied: tuple[Copying, KvSource, float] | None = None
        """What went ahead last, from where, and when."""
        self._keeping: set[SequenceKey] = set()
        """Sealed ones whose blocks stages were asked to keep."""
        self._moving: set[asyncio.Task[None]] = set()

    def headed(self, formation_id: str) -> FormationPart:
        """Raises FailedPrecondition for another formation."""
        formation = self._headed()
        if formation is None or formation.id != formation_id:
            raise FailedPrecondition("not the head of this formation", field="formation_id")
        return formation

    def forget(self) -> None:
        """Another formation is headed: what went ahead of the last one's generations is over."""
        self._copied = None
        self._resting = Resting(self._ahead)
        self._keeping.clear()

    def begin(self, blocks: Coroutine[None, None, None]) -> None:
        """They move beside everything else; where that fails, they are computed."""
        task = asyncio.create_task(blocks)
        self._moving.add(task)
        task.add_done_callback(self._moved)

    def _moved(self, task: asyncio.Task[None]) -> None:
        self._moving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("blocks do not move", exc_info=error)

    def do(self, formation: FormationPart, due: Due) -> None:
        """What is due of fetches, and of blocks to be kept."""
        for fetch in due.fetches:
            self.begin(self._fetch(formation, fetch))
        for leaving in due.keeps:
            self.begin(self._keep_beside(formation, leaving))

    async def keep_sealed(
        self, formation_id: str, replayed: Collection[str], *, last: bool, keep_s: float = 0.0
    ) -> None:
        """What was computed of those that are sealed and not `replayed` elsewhere, at every stage
        and for so long at least; behind the `last` of them there is nothing more. Before it those
        are kept that are sealed since the call before; behind it all are, as long as if they came
        then."""
        formation = self._headed()
        if formation is None or formation.id != formation_id:
            return
        # Of what is sealed meanwhile stages may lack blocks yet: who keeps those sends them.
        sealed = self._batching.sealed(replayed)
        if not last:
            sealed = [one for one in sealed if one.key not in self._keeping]
            if not sealed:
                return
        self._keeping.update(one.key for one in sealed)
        with self.giving_back(formation), self._batching.kept(sealed) as kept:
            there = await self.computed(formation, kept) and await self.kept(
                formation, kept, last=last, keep_s=keep_s
            )
        if there and self._copied is not None:
            copying, source, at_s = self._copied
            if self._clock() - at_s < COPYING_AGAIN_S:
                places = dict(kept.blocks)  # the last ids may fill a block that has no name yet
                names = {one.key: [n for n in names_of(one) if n in places] for one in sealed}
                rest = copying.rest(names)
                self.begin(self._send_rest(formation, copying, rest, source, places))

    async def _send_rest(
        self,
        formation: FormationPart,
        copying: Copying,
        rest: Mapping[int, Mapping[SequenceKey, Sequence[bytes]]],
        source: KvSource,
        places: Mapping[bytes, int],
    ) -> None:
        """The last blocks of sealed ones, which lie in these places, go to where they go on while
        their readers ask who that is."""
        stores = [
            self._kv.store(
                formation,
                source,
                copying.heirs[heir].members,
                list(dict.fromkeys(n for names in chains.values() for n in names[-LAST_BLOCKS:])),
                REST_S,
                _laid(copying.heirs[heir], places),
            )
            for heir, chains in rest.items()
        ]
        stored = await asyncio.gather(*stores)
        whole = {
            heir: chains
            for (heir, chains), one in zip(rest.items(), stored, strict=True)
            if one.whole and copying.heirs[heir].formation_id
        }
        await self._into_caches(copying, whole, source, self._clock() + REST_S)

    async def copy(
        self,
        formation_id: str,
        heirs: Sequence[Heir],
        source: KvSource,
        limit_s: float,
        *,
        follows: bool = False,
        max_rounds: int = 0,
    ) -> Copied:
        """Has full blocks go ahead to the heirs while their generations run on, until another round
        would find as much as the last one, or the limit is over, or so many rounds were made, if
        any number is said; with `follows` for as long as one of them runs here. Raises
        FailedPrecondition for another formation."""
        formation, copied = self.headed(formation_id), Copied()
        copying = Copying(heirs, follows=True) if follows else self._copying(heirs)
        # Whoever is followed is waited for, and whoever asks for so many rounds has a deadline.
        hurries = follows or max_rounds
        resting = Resting(replace(self._ahead, slows=1.0)) if hurries else self._resting
        until_s = self._clock() + limit_s
        try:
            while (left_s := until_s - self._clock()) > 0:
                began_s, step = self._clock(), self._last_step
                came = await self._go_ahead(formation, copying, source, until_s)
                if came is None:
                    waits = follows and copying.idle and copying.taken
                    if waits and await self._goes_on(formation, copying, left_s):
                        continue
                    break
                took_s = self._clock() - began_s
                copied.rounds += 1
                copied.size_bytes += came.size_bytes
                copied.full = came.full
                copied.took_s += took_s
                if formation is not self._headed():
                    break  # the steps are another one's by now, and nothing more goes
                resting.went(took_s, self._last_step - step)
                await self._rest(resting, took_s, until_s)
                if copied.rounds == max_rounds:
                    break
        finally:
            if not follows and formation is self._headed():
                self._copied = copying, source, self._clock()
        copied.blocks, copied.blocks_of = copying.blocks, copying.blocks_of
        copied.cached, copied.over = copying.cached, copying.over
        return copied

    async def _rest(self, resting: Resting, took_s: float, until_s: float) -> None:
        """Behind a round that took so long."""
        began_s, step = self._clock(), self._last_step
        await asyncio.sleep(max(0.0, min(resting.rest_s(took_s), until_s - began_s)))
        resting.rested(self._clock() - began_s, self._last_step - step)

    async def _goes_on(self, formation: FormationPart, copying: Copying, limit_s: float) -> bool:
        """Something has happened; False: none of the generations runs any more."""
        running = self._batching.generations.running(copying.generation_ids)
        if formation is not self._headed() or not running:
            return False
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        return True

    def _copying(self, heirs: Sequence[Heir]) -> Copying:
        """What goes to them, from where it was if that is not long ago. It is one caller's at a
        time: two rounds of the same blocks would be counted as blocks behind one another."""
        if self._copied is not None:
            copying, _, at_s = self._copied
            if copying.heirs == tuple(heirs) and self._clock() - at_s < COPYING_AGAIN_S:
                self._copied = None
                return copying
        return Copying(heirs)

    async def _go_ahead(
        self, formation: FormationPart, copying: Copying, source: KvSource, until_s: float
    ) -> _Round | None:
        """None: there is no more to be done, or it cannot be."""
        layers = formation.membership.members[-1].layers.end
        block_bytes = max(1, layers * formation.kv_layout.layer_bytes)
        at_most = min(MAX_NAMES, max(1, AHEAD_BYTES // block_bytes))
        with self.giving_back(formation), self._batching.ahead(copying, at_most) as going:
            if going is None:
                return None
            ahead, leaving = going
            if not await self.computed(formation, leaving):
                return None
            kept = await self.kept(formation, leaving)
            if kept is None:
                return None
        names, limit_s = ahead.names, max(0.0, until_s - self._clock())
        places = dict(ahead.blocks)
        stores = [
            self._kv.store(
                formation,
                source,
                copying.heirs[heir].members,
                of_heir,
                limit_s,
                _laid(copying.heirs[heir], places),
            )
            for heir, of_heir in names.items()
        ]
        stored = dict(zip(names, await asyncio.gather(*stores), strict=True))
        there = {heir for heir, one in stored.items() if one.whole}
        copying.copied(ahead, there)
        await self._into_caches(copying, copying.for_caches(ahead, there), source, until_s)
        return _Round(
            sum(one.size_bytes for one in stored.values()),
            kept < len(leaving.blocks) or any(one.full for one in stored.values()),
        )

    async def _into_caches(
        self,
        copying: Copying,
        chains: Mapping[int, Mapping[SequenceKey, Sequence[bytes]]],
        source: KvSource,
        until_s: float,
    ) -> None:
        """What heirs keep by now lies where it will be wanted, as far as they have room."""
        limit_s = max(0.0, until_s - self._clock())
        pages = [(heir, page) for heir, of_heir in chains.items() for page in _pages(of_heir)]
        asked = [
            self._kv.cache(copying.heirs[heir], source, list(page.values()), limit_s)
            for heir, page in pages
        ]
        for (_, page), cached in zip(pages, await asyncio.gather(*asked), strict=True):
            copying.lie(dict(zip(page, cached, strict=False)))

    async def take_ahead(
        self,
        formation_id: str,
        source: KvSource,
        chains: Sequence[Sequence[bytes]],
        limit_s: float,
    ) -> list[int]:
        """Has blocks of sequences that are to come here lie in the caches; of each chain of names
        so many do from the first on. Raises FailedPrecondition for another formation."""
        formation = self.headed(formation_id)
        number, due = self._batching.take_ahead(chains, source)
        self._do(due)
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while formation is self._headed() and self._batching.awaits(number):
                    self._changed.clear()
                    await self._changed.wait()
        scheduler = self._scheduler if formation is self._headed() else None
        return [len(scheduler.blocks.find(names)) if scheduler else 0 for names in chains]

    @contextmanager
    def giving_back(self, formation: FormationPart) -> Iterator[None]:
        """Behind it what had no room beside the blocks that were lent may run. Where nothing does,
        nothing is said: two who are woken by all that happens would wake each other."""
        try:
            yield
        finally:
            if formation is self._headed():
                due = self._batching.given_back(self._clock())
                if due != Due():
                    self._do(due)

    async def computed(self, formation: FormationPart, leaving: Leaving) -> bool:
        """Waits until these blocks hold what they are named for; False: the formation ended
        before."""
        while self._headed() is formation:
            if leaving.computed:
                return True
            self._changed.clear()
            await self._changed.wait()
        return False

    async def _keep_beside(self, formation: FormationPart, leaving: Leaving) -> None:
        """What was computed of one that goes on elsewhere, while others run on."""
        try:
            if await self.computed(formation, leaving):
                await self.kept(formation, leaving)
        except Exception:  # whoever asks for the blocks computes them
            _log.exception("blocks are not kept", extra={"formation_id": formation.id})
        if formation is self._headed():
            self._do(self._batching.left(leaving, self._clock()))

    async def kept(
        self,
        formation: FormationPart,
        leaving: Leaving,
        *,
        last: bool = False,
        keep_s: float = 0.0,
        offered: bool = False,
    ) -> int | None:
        """Every stage keeps so many of these, from the first on; None where one does not answer:
        they stay taken until it does no more."""
        leaving.busy, kept = True, None
        try:
            kept = await self._kv.keep(
                formation,
                leaving.number,
                leaving.blocks,
                last=last,
                keep_s=keep_s,
                offered=offered,
            )
            leaving.busy = kept is None
        finally:
            if leaving.busy:
                self.begin(self._end_keeping(formation, leaving))
        return kept

    async def _end_keeping(self, formation: FormationPart, leaving: Leaving) -> None:
        if await self._ended(formation, leaving.number):
            leaving.busy = False
            self._do(self._batching.left(leaving, self._clock()))

    async def _ended(self, formation: FormationPart, number: int) -> bool:
        """Returns when no stage does anything to blocks by this number; False: the formation ended
        before."""
        while formation is self._headed():
            if await self._kv.end(formation, number):
                return formation is self._headed()
            await asyncio.sleep(END_AGAIN_S)
        return False

    async def _fetch(self, formation: FormationPart, fetch: KvFetch) -> None:
        brought, began_s = Brought(None), self._clock()
        try:
            brought = await self._brought(formation, fetch)
        except Exception:  # whoever waits for the blocks starts without them
            _log.exception("blocks are not fetched", extra={"formation_id": formation.id})
        count, now_s = brought.count, self._clock()
        if formation is self._headed():
            took_s = now_s - began_s
            due = self._batching.fetched(
                fetch, count, now_s, brought.size_bytes, took_s, rounded=brought.rounded
            )
            self._do(due)
        if count is None and await self._ended(formation, fetch.number):
            self._do(self._batching.ended(fetch, self._clock()))

    async def _brought(self, formation: FormationPart, fetch: KvFetch) -> Brought:
        if fetch.holder is None:
            return await self._kv.fetch(formation, fetch)
        return await brought_from(self._kv, formation, fetch, fetch.holder, self._clock)

    @property
    def _scheduler(self) -> Scheduler | None:
        lead = self._batching.lead
        return lead.scheduler if lead else None

    @property
    def _last_step(self) -> int:
        """The last one that departed; 0: nothing is headed."""
        scheduler = self._scheduler
        return scheduler.last_step if scheduler else 0


def _laid(heir: Heir, places: Mapping[bytes, int]) -> Mapping[bytes, int]:
    """Where blocks are to lie already for an heir that is no formation yet."""
    return {} if heir.formation_id else places


def _pages(
    chains: Mapping[SequenceKey, Sequence[bytes]],
) -> Iterator[dict[SequenceKey, Sequence[bytes]]]:
    """All of them, so many blocks at a time as a call may name; of a chain that is longer its
    beginning."""
    page, named = dict[SequenceKey, Sequence[bytes]](), 0
    for key, names in chains.items():
        beginning = names[:MAX_NAMES]
        if page and named + len(beginning) > MAX_NAMES:
            yield page
            page, named = {}, 0
        page[key] = beginning
        named += len(beginning)
    if page:
        yield page
