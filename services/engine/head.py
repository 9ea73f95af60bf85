"""The head of a pipeline at work: its cores, its readers and the chain of stages, tied together.

One thread, no locks: whatever happens becomes a call of the cores, and what they answer is done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from services.common import logs
from services.common.errors import FailedPrecondition, ResourceExhausted
from services.common.exchange import (
    Checkpoint,
    CheckpointResult,
    Closed,
    Frame,
    GenerateCall,
    HeadLoad,
    Left,
    PrefixNews,
)
from services.common.generation import CancelReason
from services.engine.backend import BLOCK_SIZE, Sampled
from services.engine.block_moves import BlockMoves
from services.engine.core.actions import Action
from services.engine.core.batching import Batching, Due
from services.engine.core.generations import Generations
from services.engine.core.lead import Lead
from services.engine.core.prefix_log import UNTOLD
from services.engine.core.resting import AheadSettings
from services.engine.core.scheduler import Scheduler
from services.engine.counters import Counters
from services.engine.formation import FormationPart
from services.engine.kv_moves import KvMoves
from services.engine.prefix_offers import PrefixOffers
from services.engine.tracing import StepTraces

_log = logging.getLogger(__name__)
AT_BLOCK_ENDS_S = 0.5
"""A drain waits so long at most for blocks that are nearly full."""
PREFIX_NEWS_S = 0.25
"""What changes in the prefix cache within this long, routers are told together."""


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """Limits of the streams to readers."""

    max_readers: int = 2048
    stall_s: float = 60.0
    """A reader that does not take a frame for this long is cut off."""
    ahead: AheadSettings = field(default_factory=AheadSettings)
    """Of blocks that go ahead of their generations."""
    offers: int = 4
    """Other pipelines that are offered a prompt's beginning at a time."""


@dataclass(slots=True, eq=False)
class _Reader:
    task: asyncio.Task[object] | None
    due: asyncio.Event = field(default_factory=asyncio.Event)
    sending_since_s: float | None = None


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
        self._traces = StepTraces()
        self._changed = asyncio.Event()
        self.moves = BlockMoves(
            self._batching,
            kv,
            limits.ahead,
            formation=lambda: self._formation,
            do=self._do,
            changed=self._changed,
            clock=clock,
        )
        self.offers = PrefixOffers(self._batching, self.moves, limits.offers)

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
        self._formation = formation
        self.moves.forget()
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
        keep_s: float = 0.0,
        replayed: Collection[str] = (),
        running: Collection[str] = (),
    ) -> int:
        """Seals every generation of the formation but those `running` and waits until the journal
        and the readers have everything; returns how many. With `keep_kv` the stages keep what they
        hold of those that are not `replayed` elsewhere, for `keep_s` at least. Raises
        FailedPrecondition for another formation."""
        if keep_kv and not running:
            await self._drain_at_block_ends(formation_id, frozenset(replayed))
        self._act(self._core.drain(formation_id, self._clock(), running))
        if keep_kv:
            await self._keep(formation_id, replayed, last=not running, keep_s=keep_s)
        while (sealed := self._core.drained(formation_id, self._clock(), running)) is None:
            self._changed.clear()
            await self._changed.wait()
        return sealed

    async def _drain_at_block_ends(self, formation_id: str, replayed: frozenset[str]) -> None:
        """Each generation that is not `replayed` is sealed when its last block is full, as far as
        that is within the limit. Nothing is said twice: another drain would be woken by it, and
        wake this one."""
        until_s, sealed, told = self._clock() + AT_BLOCK_ENDS_S, 0, None
        while (left_s := until_s - self._clock()) > 0 and self.formation_id == formation_id:
            late = self._batching.within_blocks() - replayed
            if not late:
                return
            if late != told:
                self._act(self._core.drain(formation_id, self._clock(), late))
                told = late
            if self._core.sealed_count > sealed:
                sealed = self._core.sealed_count
                self.moves.begin(self.moves.keep_sealed(formation_id, replayed, last=False))
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    async def _keep(
        self, formation_id: str, replayed: Collection[str], *, last: bool, keep_s: float
    ) -> None:
        """What was computed of those that are sealed by now, at every stage; behind the `last` of
        them there is nothing more."""
        while self._core.sealing(formation_id):
            self._changed.clear()
            await self._changed.wait()
        await self.moves.keep_sealed(formation_id, replayed, last=last, keep_s=keep_s)

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

    def _do(self, due: Due) -> None:
        if self._formation is not None:
            for step in due.steps:
                traceparents = self._traces.departed(step)
                self._counters.departed(step)
                self._formation.submit(step.number, step.batch, step.token_ids, traceparents)
            self.moves.do(self._formation, due)
        for waited_s in due.waited_s:
            self._counters.admitted(waited_s)
        if due.checkpoints:
            self.checkpoints_due.set()
        self._changed.set()
        for reader_id in due.readers:
            if (reader := self._readers.get(reader_id)) is not None:
                reader.due.set()
