"""The head of a pipeline at work: its cores, its readers and the chain of stages, tied together.

One thread, no locks: whatever happens becomes a call of the cores, and what they answer is done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.common import logs
from services.common.errors import FailedPrecondition, ResourceExhausted
from services.common.exchange import (
    Checkpoint,
    CheckpointResult,
    Closed,
    Frame,
    GenerateCall,
    HeadLoad,
    KvMember,
    KvSource,
    Left,
    PrefixNews,
)
from services.common.generation import CancelReason
from services.engine.backend import BLOCK_SIZE, Sampled
from services.engine.core.actions import Action, SequenceKey
from services.engine.core.batching import Batching, Due, Lead, Leaving
from services.engine.core.copying import Copying, Heir
from services.engine.core.generations import Generations
from services.engine.core.incoming import KvFetch, NamedBlock
from services.engine.core.prefix_log import UNTOLD
from services.engine.core.scheduler import Scheduler
from services.engine.counters import Counters
from services.engine.formation import FormationPart
from services.engine.tracing import StepTraces

_log = logging.getLogger(__name__)
AHEAD_BYTES = 16 << 20
"""Blocks that go ahead in one round, of all stages together: what is lent to stages no step may
have, and behind each round decoding has its turn."""
AT_BLOCK_ENDS_S = 0.5
"""A drain waits so long at most for blocks that are nearly full."""
END_AGAIN_S = 1.0
"""A stage that does not say that it leaves blocks alone is asked again."""
COPYING_AGAIN_S = 2.0
"""Who asks again this soon for blocks to go ahead goes on where it was."""
PREFIX_NEWS_S = 0.25
"""What changes in the prefix cache within this long, routers are told together."""


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """Limits of the streams to readers."""

    max_readers: int = 2048
    stall_s: float = 60.0
    """A reader that does not take a frame for this long is cut off."""
    ahead_share: float = 0.5
    """Blocks that go ahead of their generations do so for this share of the time."""


@dataclass(slots=True, eq=False)
class _Reader:
    task: asyncio.Task[object] | None
    due: asyncio.Event = field(default_factory=asyncio.Event)
    sending_since_s: float | None = None


class KvMoves(Protocol):
    """What a head asks of the stages of its formation, when generations move."""

    async def keep(
        self, formation: FormationPart, number: int, blocks: Sequence[NamedBlock], *, last: bool
    ) -> bool:
        """Every stage keeps what it holds of these, those first that come first; behind the last
        ones nothing more. False: some stage did not answer, and may be at it yet."""
        ...

    async def store(
        self,
        formation: FormationPart,
        source: KvSource,
        heir: Sequence[KvMember],
        names: Sequence[bytes],
        limit_s: float,
    ) -> int | None:
        """All members of the heir keep what the source keeps of these, of their layers: bytes that
        came for it from process to process. None: not all of it, or not in time."""
        ...

    async def cache(
        self, heir: Heir, source: KvSource, chains: Sequence[Sequence[bytes]], limit_s: float
    ) -> Sequence[int]:
        """The formation that the heir is has these lie in its caches: so many of each chain, from
        its first on."""
        ...

    async def fetch(self, formation: FormationPart, fetch: KvFetch) -> int | None:
        """How many blocks, from the first on, every stage has filled; None: some stage did not
        answer, and may fill them yet."""
        ...

    async def end(self, formation: FormationPart, number: int) -> bool:
        """No stage does anything to blocks any more that it was asked by this number; False: one
        did not say so."""
        ...


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
    """None lacks more than the block behind its last."""


class Head:
    """Serves readers, feeds the stages, and keeps what the journal has yet to be told."""

    def __init__(
        self,
        generations: Generations,
        limits: ReaderLimits,
        counters: Counters,
        clock: Callable[[], float],
        kv: KvMoves,
    ) -> None:
        self.checkpoints_due = asyncio.Event()
        self._core = generations
        self._batching = Batching(generations)
        self._limits = limits
        self._counters = counters
        self._clock = clock
        self._formation: FormationPart | None = None
        """The one this process heads."""
        self._readers: dict[int, _Reader] = {}
        self._reader_ids = itertools.count(1)
        self._kv = kv
        self._copied: tuple[Copying, float] | None = None
        """What went ahead last, and when."""
        self._moving: set[asyncio.Task[None]] = set()
        """Blocks, from here and to here."""
        self._traces = StepTraces()
        self._changed = asyncio.Event()

    @property
    def tick_s(self) -> float:
        """How often to call `tick`."""
        return self._core.settings.frame_interval_s / 2

    @property
    def reader_count(self) -> int:
        return len(self._readers)

    @property
    def open_generations(self) -> int:
        return self._core.open_generations

    @property
    def has_work(self) -> bool:
        """Steps are to be made, or to come back."""
        return self._batching.has_work

    @property
    def formation_id(self) -> str:
        """The formation this process heads; empty when none."""
        return self._formation.id if self._formation else ""

    @property
    def scheduler(self) -> Scheduler | None:
        """The running batch; None while this process heads nothing."""
        lead = self._batching.lead
        return lead.scheduler if lead else None

    async def prefixes(self, formation_id: str) -> AsyncGenerator[PrefixNews, None]:
        """Which beginnings of sequences are held, and how busy the batch is, for as long as the
        formation stands. Raises FailedPrecondition for another one, and when it ends."""
        position = UNTOLD
        told: HeadLoad | None = None
        while self.formation_id == formation_id and (lead := self._batching.lead) is not None:
            news, position = lead.scheduler.blocks.log.since(position)
            load = lead.gauge.read(lead.scheduler)
            if news is not None or load != told:
                told, news = load, news or PrefixNews(BLOCK_SIZE, whole=False)
                yield replace(news, load=load)
            await asyncio.sleep(PREFIX_NEWS_S)
        raise FailedPrecondition("not the head of this formation", field="formation_id")

    # Formations

    def form(self, formation: FormationPart, lead: Lead, numerics_class: str) -> None:
        """Heads a formation that stands."""
        self._formation, self._copied = formation, None
        self._do(self._batching.form(lead, numerics_class, self._clock()))

    def dissolve(self, formation_id: str) -> None:
        """Seals what is known and tells every reader; nothing in flight counts any more."""
        if self.formation_id != formation_id:
            return
        self._formation = None
        self._traces.drop()
        self._do(self._batching.dissolve(formation_id, self._clock()))

    async def drain(
        self,
        formation_id: str,
        *,
        keep_kv: bool = False,
        replayed: Collection[str] = (),
        running: Collection[str] = (),
    ) -> int:
        """Seals every generation of the formation but those `running` and waits until the journal
        and the readers have everything; returns how many. With `keep_kv` the stages keep what they
        hold of those that are not `replayed` elsewhere. Raises FailedPrecondition for another
        formation."""
        if keep_kv and not running:
            await self._drain_at_block_ends(formation_id, frozenset(replayed))
        self._act(self._core.drain(formation_id, self._clock(), running))
        if keep_kv:
            await self._keep(formation_id, replayed, last=not running)
        while (sealed := self._core.drained(formation_id, self._clock(), running)) is None:
            self._changed.clear()
            await self._changed.wait()
        return sealed

    async def _drain_at_block_ends(self, formation_id: str, replayed: frozenset[str]) -> None:
        """Each generation that is not `replayed` is sealed when its last block is full, as far as
        that is within the limit."""
        until_s, sealed = self._clock() + AT_BLOCK_ENDS_S, 0
        while (left_s := until_s - self._clock()) > 0 and self.formation_id == formation_id:
            late = self._batching.within_blocks() - replayed
            if not late:
                return
            self._act(self._core.drain(formation_id, self._clock(), late))
            if self._core.sealed_count > sealed:
                sealed = self._core.sealed_count
                self._move(self._keep_sealed(formation_id, replayed, last=False))
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    async def _keep(self, formation_id: str, replayed: Collection[str], *, last: bool) -> None:
        """What was computed of those that are sealed by now, at every stage; behind the `last` of
        them there is nothing more."""
        while self._core.sealing(formation_id):
            self._changed.clear()
            await self._changed.wait()
        await self._keep_sealed(formation_id, replayed, last=last)

    async def _keep_sealed(
        self, formation_id: str, replayed: Collection[str], *, last: bool
    ) -> None:
        formation = self._formation
        if formation is None or formation.id != formation_id:
            return
        with self._batching.kept(frozenset(replayed)) as kept:
            await self._kept(formation, kept, last=last)

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
        """Has full blocks go ahead to the heirs while their generations run on, until none lacks
        more than the one behind its last, or the limit is over, or so many rounds were made, if
        any number is said; with `follows` for as long as one of them runs here. Raises
        FailedPrecondition for another formation."""
        formation, copied = self._formation, Copied()
        if formation is None or formation.id != formation_id:
            raise FailedPrecondition("not the head of this formation", field="formation_id")
        copying, until_s = self._copying(heirs), self._clock() + limit_s
        while (left_s := until_s - self._clock()) > 0:
            began_s = self._clock()
            size_bytes = await self._go_ahead(formation, copying, source, left_s)
            if size_bytes is None:
                if follows and copying.over and await self._goes_on(formation, copying, left_s):
                    continue
                break
            took_s = self._clock() - began_s
            copied.rounds += 1
            copied.size_bytes += size_bytes
            copied.took_s += took_s
            rest_s = took_s * (1 / self._limits.ahead_share - 1)
            await asyncio.sleep(max(0.0, min(rest_s, until_s - self._clock())))
            if copied.rounds == max_rounds:
                break
        if not follows:
            self._copied = copying, self._clock()
        copied.blocks, copied.cached, copied.over = copying.blocks, copying.cached, copying.over
        return copied

    async def _goes_on(self, formation: FormationPart, copying: Copying, limit_s: float) -> bool:
        """Something has happened; False: none of the generations runs any more."""
        if formation is not self._formation or not self._core.running(copying.generation_ids):
            return False
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        return True

    def _copying(self, heirs: Sequence[Heir]) -> Copying:
        """What goes to them, from where it was if that is not long ago."""
        if self._copied is not None:
            copying, at_s = self._copied
            if copying.heirs == tuple(heirs) and self._clock() - at_s < COPYING_AGAIN_S:
                return copying
        return Copying(heirs)

    async def _go_ahead(
        self, formation: FormationPart, copying: Copying, source: KvSource, limit_s: float
    ) -> int | None:
        """One round; bytes that went from process to process. None: there is no more to be done, or
        it cannot be."""
        layers = formation.membership.members[-1].layers.end
        at_most = max(1, AHEAD_BYTES // max(1, layers * formation.kv_layout.layer_bytes))
        with self._batching.ahead(copying, at_most) as going:
            if going is None or not await self._computed(formation):
                return None
            ahead, kept = going
            if not await self._kept(formation, kept, last=False):
                return None
        names = ahead.names
        stores = [
            self._kv.store(formation, source, copying.heirs[heir].members, of_heir, limit_s)
            for heir, of_heir in names.items()
        ]
        stored = dict(zip(names, await asyncio.gather(*stores), strict=True))
        there = {heir for heir, size in stored.items() if size is not None}
        copying.copied(ahead, there)
        await self._into_caches(copying, copying.for_caches(ahead, there), source, limit_s)
        return sum(size or 0 for size in stored.values())

    async def _into_caches(
        self,
        copying: Copying,
        chains: Mapping[int, Mapping[SequenceKey, list[bytes]]],
        source: KvSource,
        limit_s: float,
    ) -> None:
        """What heirs keep by now lies where it will be wanted, as far as they have room."""
        asked = [
            self._kv.cache(copying.heirs[heir], source, list(of_heir.values()), limit_s)
            for heir, of_heir in chains.items()
        ]
        for of_heir, cached in zip(chains.values(), await asyncio.gather(*asked), strict=True):
            copying.lie(dict(zip(of_heir, cached, strict=False)))

    async def take_ahead(
        self,
        formation_id: str,
        source: KvSource,
        chains: Sequence[Sequence[bytes]],
        limit_s: float,
    ) -> list[int]:
        """Has blocks of sequences that are to come here lie in the caches; of each chain of names
        so many do from the first on. Raises FailedPrecondition for another formation."""
        formation = self._formation
        if formation is None or formation.id != formation_id:
            raise FailedPrecondition("not the head of this formation", field="formation_id")
        number, due = self._batching.take_ahead(chains, source)
        self._do(due)
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while formation is self._formation and self._batching.awaits(number):
                    self._changed.clear()
                    await self._changed.wait()
        scheduler = self.scheduler if formation is self._formation else None
        return [len(scheduler.blocks.find(names)) if scheduler else 0 for names in chains]

    async def _computed(self, formation: FormationPart) -> bool:
        """Waits until all steps that have departed are back; False: the formation ended before."""
        scheduler = self.scheduler
        last_step = scheduler.last_step if scheduler is not None else 0
        while self._formation is formation and scheduler is not None:
            if scheduler.is_back(last_step):
                return True
            self._changed.clear()
            await self._changed.wait()
        return False

    async def _keep_beside(self, formation: FormationPart, leaving: Leaving) -> None:
        """What was computed of one that goes on elsewhere, while others run on."""
        try:
            await self._kept(formation, leaving, last=False)
        except Exception:  # whoever asks for the blocks computes them
            _log.exception("blocks are not kept", extra={"formation_id": formation.id})
        if formation is self._formation:
            self._do(self._batching.left(leaving, self._clock()))

    async def _kept(self, formation: FormationPart, leaving: Leaving, *, last: bool) -> bool:
        """Every stage keeps these; where one does not answer, they stay taken until it does no
        more."""
        leaving.busy = True
        try:
            leaving.busy = not await self._kv.keep(
                formation, leaving.number, leaving.blocks, last=last
            )
        finally:
            if leaving.busy:
                self._move(self._end_keeping(formation, leaving))
        return not leaving.busy

    async def _end_keeping(self, formation: FormationPart, leaving: Leaving) -> None:
        if await self._ended(formation, leaving.number):
            leaving.busy = False
            self._do(self._batching.left(leaving, self._clock()))

    async def _ended(self, formation: FormationPart, number: int) -> bool:
        """Returns when no stage does anything to blocks by this number; False: the formation ended
        before."""
        while formation is self._formation:
            if await self._kv.end(formation, number):
                return formation is self._formation
            await asyncio.sleep(END_AGAIN_S)
        return False

    async def _fetch(self, formation: FormationPart, fetch: KvFetch) -> None:
        count = None
        try:
            count = await self._kv.fetch(formation, fetch)
        except Exception:  # whoever waits for the blocks starts without them
            _log.exception("blocks are not fetched", extra={"formation_id": formation.id})
        if formation is self._formation:
            self._do(self._batching.fetched(fetch, count, self._clock()))
        if count is None and await self._ended(formation, fetch.number):
            self._do(self._batching.ended(fetch, self._clock()))

    # Readers

    async def read(self, call: GenerateCall) -> AsyncGenerator[Frame, None]:
        """Runs a generation or attaches to it; the frames of its one reader. However this ends,
        the reader is detached and the generation goes on."""
        if len(self._readers) >= self._limits.max_readers:
            raise ResourceExhausted("too many readers", field="generation_id")
        reader_id = next(self._reader_ids)
        reader = _Reader(asyncio.current_task())
        self._readers[reader_id] = reader
        generation_id, followed = call.request.generation_id, None
        try:
            due = self._batching.generate(reader_id, call, self._clock())
            if due.begins:
                # An epoch is begun once; a storm of epochs is told in part.
                log = logs.access if call.epoch == 1 else _log
                log.info("generation begins", extra={"epoch": call.epoch})
            followed = self._traces.follow(generation_id)
            self._do(due)
            while True:
                frame = self._core.next_frame(reader_id, self._clock())
                if frame is None:
                    reader.due.clear()
                    await reader.due.wait()
                    continue
                reader.sending_since_s = self._clock()
                yield frame
                reader.sending_since_s = None
                if isinstance(frame, Closed):
                    return
        finally:
            del self._readers[reader_id]
            self._traces.forget(generation_id, followed)
            self._act(self._core.detach(reader_id, self._clock()))

    def cancel(self, generation_id: str, choice: int | None, reason: CancelReason) -> None:
        """Ends a generation or one choice of it."""
        self._act(self._core.cancel(generation_id, choice, reason, self._clock()))

    def clients_gone(self, left: Iterable[Left]) -> None:
        """The clients of these readers are gone; of a crowd, all in one."""
        now_s = self._clock()
        self._act([action for one in left for action in self._core.client_gone(one, now_s)])

    # Journal

    def take_checkpoints(self, message: int) -> tuple[Checkpoint, ...]:
        return self._core.take_checkpoints(message, self._clock())

    def checkpoint_results(self, message: int, results: Iterable[CheckpointResult]) -> None:
        self._act(self._core.checkpoint_results(message, results, self._clock()))

    def checkpoint_stream_opened(self) -> None:
        self._core.checkpoint_stream_opened()
        self.checkpoints_due.set()

    # Steps

    def sampled(self, formation: FormationPart, step: int, tokens: Sequence[Sampled]) -> None:
        """A step came back."""
        if formation is not self._formation:
            return
        self._traces.came_back(step)
        due = self._batching.came_back(step, tokens, self._clock())
        self._counters.came_back(due.sampled, due.accepted)
        self._do(due)

    def tick(self) -> bool:
        """Time has passed: call it every `tick_s`. False when a step is overdue."""
        now_s = self._clock()
        self._act(self._core.tick(now_s))
        self._counters.diverged(self._core.diverged)
        for reader_id, reader in list(self._readers.items()):
            if reader.sending_since_s is None:
                if self._core.is_silent(reader_id, now_s):
                    reader.due.set()
            elif now_s - reader.sending_since_s > self._limits.stall_s and reader.task:
                reader.task.cancel()
        self._changed.set()
        return not self._batching.overdue(now_s)

    def _act(self, actions: Iterable[Action]) -> None:
        self._do(self._batching.act(actions, self._clock()))

    def _move(self, blocks: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(blocks)
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    def _do(self, due: Due) -> None:
        if self._formation is not None:
            for step in due.steps:
                traceparents = self._traces.departed(step)
                self._counters.departed(step)
                self._formation.submit(step.number, step.batch, step.token_ids, traceparents)
            for fetch in due.fetches:
                self._move(self._fetch(self._formation, fetch))
            for leaving in due.keeps:
                self._move(self._keep_beside(self._formation, leaving))
        for waited_s in due.waited_s:
            self._counters.admitted(waited_s)
        if due.checkpoints:
            self.checkpoints_due.set()
        self._changed.set()
        for reader_id in due.readers:
            if (reader := self._readers.get(reader_id)) is not None:
                reader.due.set()
