"""The ledger with its journal: a reply leaves when what it rests on is durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.common.errors import (
    Diverged,
    NotFound,
    ResourceExhausted,
    ShuntError,
    Unavailable,
)
from services.common.exchange import (
    Checkpoint,
    CheckpointResult,
    GenerationView,
    Grant,
    KvSource,
    ResumeQuestion,
)
from services.common.generation import CancelReason, ModelRef
from services.controller import metrics
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Rates, Stream
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import (
    Coming,
    LedgerEvent,
    LedgerSettings,
    Outcome,
    RunsAt,
    ServingHead,
)
from services.controller.core.ledger.population import Population
from services.controller.core.ledger.records import HeadBound, Record
from services.controller.event_log import EventLog
from services.controller.journal.journal import Journal, JournalRoom, Outlived, Recovered
from services.controller.signal import Signal

_log = logging.getLogger(__name__)
Reply = TypeVar("Reply")

RESUME_POLL_S = 0.25
RECOVERY_PAUSE_S = 0.5
NO_ROOM_RETRY_S = 5.0
OUTLIVE_S = 60.0
"""Between two looks for what was stored long ago."""
FORGOTTEN_AT_ONCE = 32
"""On a full disk: a deletion needs room in the log for the pages it changes."""


class LedgerRuntime:
    """Epochs and journal, behind durability.

    When the journal fails, nothing it did not take may live on here: the ledger is read again from
    what the file holds, and callers get the failure.
    """

    def __init__(
        self,
        settings: LedgerSettings,
        journal: Journal,
        events: EventLog,
        *,
        heads: Callable[[], Sequence[ServingHead]],
        coming: Callable[[], Coming],
        runs_at: Callable[[str], RunsAt | None],
        kv_source: Callable[[str, str, bool], KvSource | None],
        deployed: Callable[[ModelRef], bool],
        began: Callable[[HeadBound], object],
        heads_changed: Signal,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._events = events
        self._heads = heads
        self._coming = coming
        self._runs_at = runs_at
        self._kv_source = kv_source
        self._deployed = deployed
        self._began = began
        self._heads_changed = heads_changed
        self._clock = clock
        self._wall_clock = wall_clock
        self._ledger = Ledger(settings)
        self._recovering: asyncio.Task[None] | None = None
        self._outlive_at_s: float | None = None
        """Next look for what was stored for long; None: now."""

    def recover(self, recovered: Recovered) -> None:
        """Goes on from what the journal holds."""
        self._ledger = self._read(recovered)

    def _read(self, recovered: Recovered) -> Ledger:
        records, ages_s = recovered.records, recovered.ages_s
        return Ledger.recover(self._settings, records, self._clock(), ages_s)

    def checkpoint(
        self, checkpoints: Sequence[Checkpoint]
    ) -> asyncio.Future[list[CheckpointResult]]:
        """Takes checkpoints in order, at once; the results resolve when they are durable.

        Raises InvalidArgument for one that names a choice that was not asked for; those before it
        are taken. Raises Unavailable while the journal does not answer, and ResourceExhausted while
        only its reserve is left: that is for grants and ends, and heads keep what is not
        acknowledged.
        """
        self._check_usable()
        self._check_answers()
        if self._journal.room is not JournalRoom.ENOUGH:
            raise ResourceExhausted("the journal's disk is full", field="journal")
        now_s = self._clock()
        results: list[CheckpointResult] = []
        records: list[Record] = []
        events: list[LedgerEvent] = []
        fsync = False
        try:
            for checkpoint in checkpoints:
                runs_at = self._runs_at(checkpoint.formation_id)
                outcome = self._ledger.checkpoint(checkpoint, runs_at, now_s)
                results.append(outcome.reply)
                records += outcome.records
                for record in outcome.records:
                    if isinstance(record, HeadBound):
                        self._began(record)
                events += outcome.events
                fsync = fsync or outcome.fsync
        finally:
            metrics.count_checkpoints(checkpoints, results)
            durable = asyncio.ensure_future(
                self._settle(Outcome(results, tuple(records), fsync, tuple(events)))
            )
        return durable

    async def resume(self, question: ResumeQuestion, wait_s: float) -> Grant:
        """Grants the next epoch, waiting up to `wait_s` for a head to grant it to.

        Raises Unavailable when none came, NotFound when none will, for its model is not deployed,
        and what Ledger.resume raises.
        """
        give_up_s = self._clock() + wait_s
        while True:
            self._check_usable()
            self._check_room()
            try:
                outcome = self._ledger.resume(
                    question, self._heads(), self._clock(), self._coming()
                )
            except Diverged:
                metrics.DIVERGED.inc()
                raise
            try:
                if outcome is not None:
                    left = self._ledger.formation_left(question.generation_id)
                    return self._with_source(await self._settle(outcome), left, question)
                self._check_deployed(question)
                left_s = give_up_s - self._clock()
                if left_s <= 0:
                    raise Unavailable("no pipeline can take the generation now")
                await self._heads_changed.wait(min(RESUME_POLL_S, left_s))
            except asyncio.CancelledError:
                self._ledger.left(question.generation_id, self._clock())
                raise

    def _with_source(self, grant: Grant, left: str, question: ResumeQuestion) -> Grant:
        """Says where blocks may be had of the formation that it left for this one, or that handed
        it on, as often as its reader asks."""
        if grant.head is None or grant.head.formation_id == left:
            return grant
        source = self._kv_source(left, question.generation_id, question.handed_on)
        return replace(grant, kv_source=source)

    def model_of(self, generation_id: str) -> ModelRef | None:
        """The version a generation was admitted for; None for one that is not known."""
        return self._ledger.model_of(generation_id)

    def _check_deployed(self, question: ResumeQuestion) -> None:
        model = self._ledger.model_of(question.generation_id)
        if model is None and question.request is not None:
            model = question.request.model
        if model is not None and not self._deployed(model):
            raise NotFound(f"{model.model_id} is not deployed any more", field="model")

    async def cancel(
        self,
        generation_id: str,
        choice: int | None,
        reason: CancelReason,
        length: int | None,
        tenant: str | None = None,
    ) -> ServingHead | None:
        """Ends a generation or one choice, durably; returns the head that may still run it. Raises
        NotFound for one that is not the `tenant`'s."""
        self._check_usable()
        self._check_room()
        incarnation = self._ledger.head_of(generation_id)
        runs = await self._settle(
            self._ledger.cancel(generation_id, choice, reason, length, self._clock(), tenant)
        )
        return self._head(incarnation) if runs else None

    async def view(self, generation_id: str) -> GenerationView:
        """What the journal holds; raises NotFound."""
        self._check_usable()
        try:
            outcome = self._ledger.view(generation_id, self._heads(), self._clock())
        except NotFound:
            self._check_answers()
            kept = await self._journal.kept(generation_id)
            await self._journal.settled()
            if kept is None:
                raise
            return kept
        return await self._settle(outcome)

    async def claim(self, ask_digest: str) -> GenerationView:
        """Gives a client's retry what its first ask began, if nobody reads it; raises NotFound."""
        self._check_usable()
        return await self._settle(self._ledger.claim(ask_digest, self._heads(), self._clock()))

    async def claim_background(self, at_most: int) -> tuple[str, ...]:
        """Names of what is to run though nobody reads it, for who asks to read it."""
        self._check_usable()
        return await self._settle(
            self._ledger.claim_background(self._heads(), self._clock(), at_most)
        )

    async def delete(self, generation_id: str) -> ServingHead | None:
        """Deletes a generation, durably, wherever it stands; returns the head that may still run
        it."""
        self._check_usable()
        self._check_room()
        incarnation = self._ledger.head_of(generation_id)
        await self._settle(self._ledger.delete(generation_id, self._clock()))
        return self._head(incarnation)

    def _head(self, incarnation: str | None) -> ServingHead | None:
        return next((h for h in self._heads() if h.route.incarnation == incarnation), None)

    async def tick(self) -> None:
        """Forgets what was kept long enough. A journal that does not answer is asked as well: when
        it fails, it is read again."""
        self._check_usable()
        self._check_disk()
        at_most = None if self._journal.room is JournalRoom.ENOUGH else FORGOTTEN_AT_ONCE
        await self._settle(self._ledger.tick(self._clock(), at_most))
        if self._outlive_at_s is None or self._clock() >= self._outlive_at_s:
            self._outlive_at_s = self._clock() + OUTLIVE_S
            kept_s, most = self._settings.stored_retention_s, self._settings.max_stored
            await self._journal.write((Outlived(self._wall_clock() - kept_s, most),))

    def streams(self, formation_id: str) -> tuple[Stream, ...]:
        """Generations that run in a formation."""
        return self._ledger.streams(formation_id)

    def promise(self, formation_id: str) -> dict[str, ServingHead]:
        """Where the generations that run in a formation will rather go on, by name."""
        return self._ledger.promise(formation_id, self._heads())

    def promise_onward(self, generation_id: str) -> ServingHead | None:
        """Where one that begins will rather be handed on to; None where it is not."""
        return self._ledger.promise_onward(generation_id, self._heads())

    def lengths(self, model: ModelRef) -> AnswerLengths:
        """Of a model's answers, as seen so far."""
        return self._ledger.observed.lengths(model)

    def rates(self, model: ModelRef, room_positions: float) -> Rates:
        """Of moves of its generations, as seen so far."""
        return self._ledger.observed.rates(model, room_positions)

    def population(self) -> Population:
        """Where every generation stands."""
        return self._ledger.population(self._heads())

    def _check_usable(self) -> None:
        if self._recovering is not None:
            if self._recovering.done():
                self._recovering.result()  # a defect: it ends the process, by who keeps house
            raise ResourceExhausted("the journal cannot be written", field="journal")
        if self._journal.full:  # asked before the ledger changes, which could not be undone
            raise ResourceExhausted("too many writes wait for the journal", field="journal")

    def _check_room(self) -> None:
        """Asked before the ledger changes: what cannot be made durable is refused at once."""
        self._check_answers()
        self._check_disk()

    def _check_disk(self) -> None:
        if self._journal.room is JournalRoom.NONE:
            raise Unavailable("the journal's disk is full", retry_after_s=NO_ROOM_RETRY_S)

    def _check_answers(self) -> None:
        if self._journal.room is JournalRoom.AWAY:
            raise Unavailable("the journal's database does not answer", field="journal")

    def _settle(self, outcome: Outcome[Reply]) -> Awaitable[Reply]:
        """Hands the records to the journal now, for their order is the ledger's."""
        try:
            durable = (
                self._journal.write(outcome.records, fsync=outcome.fsync)
                if outcome.records
                else self._journal.settled()
            )
        except ShuntError:
            self._recover_again(self._ledger)
            raise
        for event in outcome.events:
            self._events.add(
                event.kind,
                pipeline_id=event.pipeline_id,
                generation_id=event.generation_id,
                attributes=event.attributes,
            )
        return self._reply(outcome.reply, durable, self._ledger)

    async def _reply(self, reply: Reply, durable: Awaitable[None], ledger: Ledger) -> Reply:
        try:
            await durable
        except ShuntError:
            self._recover_again(ledger)
            raise
        return reply

    def _recover_again(self, failed: Ledger) -> None:
        if self._recovering is None and self._ledger is failed:
            self._recovering = asyncio.create_task(self._read_again())

    async def _read_again(self) -> None:
        while self._recovering is not None:
            try:
                recovered = await self._journal.recover()
                # Seconds of work: nodes must be heard meanwhile.
                self._ledger = await asyncio.to_thread(self._read, recovered)
                self._recovering = None
            except ShuntError as error:
                _log.error("the journal cannot be read", extra={"error": error.message})
                await asyncio.sleep(RECOVERY_PAUSE_S)
