"""Epochs and the journal: who may add to a generation, and what it has so far.

Every method answers with an Outcome: the reply, and the records it rests on. The store writes the
records of all outcomes in order and releases a reply only when everything recorded before and with
it is durable (`fsync` set: on disk; else with the next group commit). So a crash between any two
loses nothing that anybody was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat

from services.common.errors import (
    AlreadyExists,
    Cancelled,
    Diverged,
    NotFound,
    ResourceExhausted,
)
from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    CheckpointResult,
    GenerationState,
    GenerationView,
    Grant,
    ResumeQuestion,
)
from services.common.generation import CancelReason, FinishReason, ModelRef
from services.controller.core.departure.move import Stream
from services.controller.core.ledger.abandoned import Abandoned
from services.controller.core.ledger.background import Background
from services.controller.core.ledger.entry import JournalEntry
from services.controller.core.ledger.migration import Migration
from services.controller.core.ledger.observed import Observed
from services.controller.core.ledger.outcomes import (
    Coming,
    LedgerEvent,
    LedgerSettings,
    Outcome,
    RunsAt,
    ServingHead,
    refused,
)
from services.controller.core.ledger.population import Population, population_of
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Kept,
    Record,
    Sealed,
)
from services.controller.core.ledger.retention import Retention
from services.controller.core.ledger.running import Running
from services.controller.core.ledger.streams import streams_of


class Ledger:
    """Epochs and journal of all generations."""

    def __init__(self, settings: LedgerSettings) -> None:
        self.settings = settings
        self._entries: dict[str, JournalEntry] = {}
        self._tombstones: dict[str, float] = {}
        """Cancelled generations, known or not, and when."""
        self._running = Running()
        self._migration = Migration(settings, self._running)
        self._ended: dict[str, None] = {}
        """Finished and cancelled generations, the oldest end first."""
        self._retention = Retention(settings, self._entries, self._ended, self._tombstones)
        self._abandoned = Abandoned(settings.retry_window_s, settings.claim_s)
        self._background = Background(settings.claim_s)
        self.observed = Observed()
        """What generations took since this process began."""

    @classmethod
    def recover(
        cls,
        settings: LedgerSettings,
        records: Iterable[Record],
        now_s: float,
        ages_s: Iterable[float] = (),
    ) -> Ledger:
        """The ledger as it was when the last of the records was written, each so long ago; without
        ages just now."""
        ledger = cls(settings)
        for record, age_s in zip(records, chain(ages_s, repeat(0.0)), strict=False):
            ledger._apply(record, now_s - age_s)
        for entry in ledger._entries.values():
            entry.unread = entry.sealed  # a reader that is there asks for it in a moment
            entry.begun = True  # heads do not repeat what was no record
        return ledger

    def _apply(self, record: Record, now_s: float) -> None:
        """The one place where a record changes the ledger, now or at recovery."""
        name = record.generation_id
        if isinstance(record, Forgotten | Kept):
            self._tombstones.pop(name, None)
            self._ended.pop(name, None)
            if (gone := self._entries.pop(name, None)) is not None:
                self._running.place(name, gone, False)
            self._abandoned.remove(name)
            self._background.remove(name)
            self._migration.over(name)
            return
        entry = self._entries.get(name)
        if entry is None and isinstance(record, (HeadBound, Granted)):
            self._entries[name] = entry = JournalEntry(record.request, 0, now_s)
            if record.request.runs_unread:
                self._background.began(name, now_s)
        if isinstance(record, Ended) and record.choice is None:
            self._tombstones[name] = now_s
            self._ended.setdefault(name)
            self._abandoned.remove(name)
            self._background.remove(name)
        if entry is None:
            return
        entry.hear(now_s)
        self._running.place(name, entry, False)
        if isinstance(record, HeadBound):
            entry.give_to(record, 1)
        elif isinstance(record, Granted):
            entry.append(record.spans)
            exact = not record.request.sampling.kv_int8  # or nothing is computed twice and compared
            starts_over = exact and not self.settings.strategy.migration
            entry.give_to(record, record.epoch, from_the_start=starts_over)
        elif isinstance(record, IdsAppended):
            entry.append((record.span,))
        elif isinstance(record, Inexact):
            entry.inexact_from = entry.inexact_from or record.lengths
        elif isinstance(record, Sealed):
            entry.sealed = True
        elif record.choice is not None:
            choice = entry.choice(record.choice)
            if record.reason is CancelReason.CLIENT:
                choice.finish = choice.finish or FinishReason.CANCELLED
            else:
                choice.stop_length = record.length
        open_here = not entry.sealed and not entry.finished and name not in self._tombstones
        self._running.place(name, entry, open_here)
        if entry.finished:
            self._ended.setdefault(name)
            self._background.remove(name)

    def _commit(self, records: Sequence[Record], now_s: float) -> tuple[Record, ...]:
        for record in records:
            self._apply(record, now_s)
            self.observed.record(record, now_s)
        return tuple(records)

    def checkpoint(
        self, checkpoint: Checkpoint, runs_at: RunsAt | None, now_s: float
    ) -> Outcome[CheckpointResult]:
        """Binds epoch 1 to its first head, appends, compares, or refuses. `runs_at` is what is
        known of the checkpoint's formation."""
        name = checkpoint.generation_id
        records: tuple[Record, ...] = ()
        events: list[LedgerEvent] = []
        if name in self._tombstones:
            return refused(checkpoint, CheckpointRefusal.ENDED)
        if name not in self._entries:
            full = len(self._entries) >= self.settings.max_generations
            if checkpoint.epoch != 1 or checkpoint.request is None or full:
                return refused(checkpoint, CheckpointRefusal.STALE_EPOCH)
            if runs_at is not None and runs_at.model != checkpoint.request.model:
                return refused(checkpoint, CheckpointRefusal.UNKNOWN_FORMATION)
            JournalEntry(checkpoint.request, 1, now_s).compare(
                checkpoint.spans
            )  # raises before HeadBound
            pipeline_id = runs_at.pipeline_id if runs_at is not None else ""
            bound = HeadBound(
                name,
                checkpoint.incarnation,
                checkpoint.formation_id,
                pipeline_id,
                checkpoint.request,
            )
            records = self._commit([bound], now_s)
            events.append(LedgerEvent("generation_bound", name, pipeline_id))
        entry = self._entries[name]
        refusal = self._refusal(entry, checkpoint)
        if refusal is not None:
            return refused(checkpoint, refusal, entry.lengths)
        entry.hear(now_s)
        entry.begun, entry.moved_by = True, checkpoint.moved_by
        self.observed.moved(name, checkpoint.moved_by)
        self._set_unread(entry, checkpoint.unread, now_s)
        entry.told(checkpoint.spans)
        if checkpoint.inexact and not entry.inexact_from:
            records += self._commit([Inexact(name, entry.base_lengths)], now_s)
            events.append(_inexact(entry))
        new = [IdsAppended(name, span) for span in entry.fresh(checkpoint.spans)]
        records += self._commit(new, now_s)
        complete = all(span.end <= entry.lengths[span.choice] for span in checkpoint.spans)
        if checkpoint.sealed and complete and not entry.sealed:
            records += self._commit([Sealed(name, entry.epoch)], now_s)
            kind = "generation_finished" if entry.finished else "generation_sealed"
            lengths = ",".join(map(str, entry.lengths))
            attributes = {"epoch": str(entry.epoch), "lengths": lengths}
            if entry.computed_again:
                attributes["computed_again"] = str(entry.computed_again)
            events.append(LedgerEvent(kind, name, entry.pipeline_id, attributes))
        result = CheckpointResult(name, checkpoint.epoch, entry.lengths)
        return Outcome(result, records, events=tuple(events))

    def _set_unread(self, entry: JournalEntry, unread: bool, now_s: float) -> None:
        name, entry.unread = entry.request.generation_id, unread
        if unread:
            self._abandoned.left(name, entry.request.ask_digest, now_s)
        else:
            self._abandoned.remove(name)

    def _refusal(self, entry: JournalEntry, checkpoint: Checkpoint) -> CheckpointRefusal | None:
        if (checkpoint.epoch, checkpoint.incarnation) != (entry.epoch, entry.incarnation):
            return CheckpointRefusal.STALE_EPOCH
        if checkpoint.formation_id != entry.formation_id:
            return CheckpointRefusal.UNKNOWN_FORMATION
        if not entry.is_for(checkpoint.request):
            return CheckpointRefusal.DIVERGED
        try:
            entry.compare(checkpoint.spans)
        except Diverged:
            return CheckpointRefusal.DIVERGED
        if entry.sealed and any(s.end > entry.lengths[s.choice] for s in checkpoint.spans):
            return CheckpointRefusal.STALE_EPOCH
        return None

    def resume(
        self,
        question: ResumeQuestion,
        heads: Sequence[ServingHead],
        now_s: float,
        coming: Coming = (),
    ) -> Outcome[Grant] | None:
        """Grants the next epoch, or answers with the one there is: to who was not told of it, and
        to who hears nothing from a head that serves. None: no head to grant to yet; ask again when
        the heads change, and every 0.25 s, until the caller's deadline.

        Raises Cancelled, Diverged, NotFound (unknown and no request), AlreadyExists (the request
        is not the one known), InvalidArgument, ResourceExhausted.
        """
        name = question.generation_id
        if name in self._tombstones:
            raise Cancelled("the generation was cancelled")
        entry = self._entries.get(name)
        if entry is None:
            if question.request is None:
                raise NotFound("no such generation", field="generation_id")
            if len(self._entries) >= self.settings.max_generations:
                raise ResourceExhausted("the journal is full", field="generation_id")
            entry = JournalEntry(question.request, question.last_epoch, now_s)
        elif not entry.is_for(question.request):
            raise AlreadyExists("another request has this id", field="generation_id")
        entry.compare(question.held)
        entry.hear(now_s)
        self._set_unread(entry, False, now_s)
        entry.handed_on = question.handed_on
        if entry.finished:
            return Outcome(Grant(entry.epoch, None, entry.spans()))
        if entry.finished_with(question.held):
            return self._grant(entry, question, None, now_s)
        decision = self._migration.decide(entry, question, heads, now_s, coming)
        if decision is None:
            return None
        if not decision.moves:
            granted = entry.spans(entry.base_lengths)  # as it was
            return Outcome(Grant(entry.epoch, decision.head.route, granted))
        return self._grant(entry, question, decision.head, now_s)

    def _grant(
        self, entry: JournalEntry, question: ResumeQuestion, head: ServingHead | None, now_s: float
    ) -> Outcome[Grant]:
        name, route = question.generation_id, head.route if head is not None else None
        sealed, before = entry.sealed or question.handed_on, entry.pipeline_id
        planned = sealed and not question.left_formation_id
        record = Granted(
            name,
            max(entry.epoch, question.last_epoch) + 1,
            route.incarnation if route is not None else "",
            route.formation_id if route is not None else "",
            route.pipeline_id if route is not None else "",
            entry.request,
            entry.fresh(question.held),
            head.numerics_class if head is not None else "",
        )
        had = entry.classes[-1:]
        self._migration.over(name)
        doubt = entry.in_doubt(question.held)
        news: list[Record] = [Inexact(name, entry.base_lengths)] if doubt else []
        # What is doubted of an epoch stands before the next one; of what is not known yet, behind.
        news.insert(len(news) if name in self._entries else 0, record)
        records = self._commit(news, now_s)
        entry = self._entries[name]
        attributes = {
            "epoch": str(entry.epoch),
            "from": before,
            "planned": str(planned).lower(),
            "base": ",".join(map(str, entry.base_lengths)),
        }
        if entry.began_at:
            attributes["handed_on"] = "true"
        if had and entry.classes[-1:] != had:
            attributes["numerics"] = f"{had[0]} to {entry.classes[-1]}"
        event = LedgerEvent("generation_granted", name, entry.pipeline_id, attributes)
        events = (event, _inexact(entry)) if doubt else (event,)
        base = entry.spans(entry.base_lengths if route is not None else None)
        return Outcome(Grant(entry.epoch, route, base), records, True, events)

    def cancel(
        self,
        generation_id: str,
        choice: int | None,
        reason: CancelReason,
        length: int | None,
        now_s: float,
        tenant: str | None = None,
    ) -> Outcome[bool]:
        """Whether its head is to hear of it. Reason client: a tombstone, for an unknown id too; but
        what has ended stays as it is, and whoever reads it has its end. Reason stop: the choice (or
        each) needs no more than `length` ids, or than there are. Behind a tombstone nothing
        changes: a router that found a stop string may be overtaken by its client's cancel. Raises
        NotFound where it is known and not the `tenant`'s."""
        entry = self._entries.get(generation_id)
        if entry is not None and tenant not in (None, entry.request.tenant):
            raise NotFound("no such generation", field="generation_id")
        if generation_id in self._tombstones:
            return Outcome(True)
        if reason is CancelReason.CLIENT and choice is None:
            if entry is not None and entry.finished:
                return Outcome(False)
            records = self._commit([Ended(generation_id, None, reason, None)], now_s)
            event = LedgerEvent("generation_cancelled", generation_id)
            return Outcome(True, records, True, (event,))
        if entry is None:
            return Outcome(True)  # its head is told too, and ends it in its checkpoints
        indices = range(len(entry.choices)) if choice is None else (choice,)
        ends = [
            Ended(generation_id, i, reason, len(entry.choice(i).run) if length is None else length)
            for i in indices
            if entry.choice(i).finish is None and entry.choice(i).stop_length is None
        ]
        return Outcome(True, self._commit(ends, now_s), reason is CancelReason.CLIENT)

    def view(
        self, generation_id: str, heads: Sequence[ServingHead], now_s: float
    ) -> Outcome[GenerationView]:
        """What the journal holds. Raises NotFound; a tombstone without a request counts as such."""
        entry = self._entries.get(generation_id)
        if entry is None:
            raise NotFound("no such generation", field="generation_id")
        entry.touched_s = now_s
        state = GenerationState.FINISHED if entry.finished else GenerationState.OPEN
        if generation_id in self._tombstones:
            state = GenerationState.CANCELLED
        holder = None
        if state is GenerationState.OPEN and not entry.sealed:
            routes = (h.route for h in heads)
            holder = next((r for r in routes if r.formation_id == entry.formation_id), None)
        return Outcome(
            GenerationView(entry.request, entry.spans(), entry.epoch, holder, state, entry.classes)
        )

    def left(self, generation_id: str, now_s: float) -> None:
        """Whoever asked for its next epoch is gone, answered or not."""
        entry = self._entries.get(generation_id)
        if entry is not None and generation_id not in self._ended:
            self._set_unread(entry, True, now_s)

    def claim(
        self, ask_digest: str, heads: Sequence[ServingHead], now_s: float
    ) -> Outcome[GenerationView]:
        """Gives a client's retry what its first ask began, if nobody reads it. Raises NotFound."""
        name = self._abandoned.claim(ask_digest, now_s)
        if name is None:
            raise NotFound("no such generation is left unread", field="ask_digest")
        if self._entries[name].finished:
            self._abandoned.remove(name)  # nothing will tell that it is read
        return self.view(name, heads, now_s)

    def claim_background(
        self, heads: Sequence[ServingHead], now_s: float, at_most: int
    ) -> Outcome[tuple[str, ...]]:
        """Names, at most so many, of what runs though nobody reads it and has no reader at present:
        the caller's to read, for only a reader takes it to its next head."""
        serving = {head.route.formation_id for head in heads}
        names = self._background.claim(self._entries, serving, now_s, at_most)
        return Outcome(tuple(names))

    def delete(self, generation_id: str, now_s: float) -> Outcome[None]:
        """Nothing is left of it but a tombstone, for heads that may still have it."""
        tombstone = Ended(generation_id, None, CancelReason.CLIENT, None)
        records = self._commit((Forgotten(generation_id), tombstone), now_s)
        event = LedgerEvent("generation_deleted", generation_id)
        return Outcome(None, records, True, (event,))

    def model_of(self, generation_id: str) -> ModelRef | None:
        """The version a generation was admitted for; None for one that is not known."""
        entry = self._entries.get(generation_id)
        return entry.request.model if entry is not None else None

    def head_of(self, generation_id: str) -> str | None:
        """Incarnation that holds the generation's epoch, to pass a Cancel on to."""
        entry = self._entries.get(generation_id)
        return entry.incarnation or None if entry is not None else None

    def formation_left(self, generation_id: str) -> str:
        """That held the generation's epoch before the one that does now; empty when none did."""
        entry = self._entries.get(generation_id)
        return entry.left_formation_id if entry is not None else ""

    def tick(self, now_s: float, at_most: int | None = None) -> Outcome[None]:
        """Forgets what was kept long enough, the oldest end first; call it every second or so."""
        leave = self._retention.leaving(now_s, at_most)
        for entry in self._retention.still_open().values():
            unbegun = not (entry.begun or entry.unread)
            if unbegun and now_s - entry.heard_s >= self.settings.unbegun_s:
                self._set_unread(entry, True, now_s)
        self._abandoned.forget(now_s)
        self._migration.forget(now_s)
        return Outcome(None, self._commit(leave, now_s))

    def streams(self, formation_id: str) -> tuple[Stream, ...]:
        """Generations that run there."""
        names = self._running.names(formation_id)
        return streams_of({name: self._entries[name] for name in names}, self.observed)

    def promise(self, formation_id: str, heads: Sequence[ServingHead]) -> dict[str, ServingHead]:
        """Where generations that run there will rather go on once they have left it; by name."""
        return self._running.promise(self._entries, formation_id, heads)

    def promise_onward(
        self, generation_id: str, heads: Sequence[ServingHead]
    ) -> ServingHead | None:
        """Where a generation that begins will rather be handed on to; None where it is not."""
        entry = self._entries.get(generation_id)
        if entry is None:
            return None
        return self._running.promise_onward(generation_id, entry, heads)

    def population(self, heads: Sequence[ServingHead]) -> Population:
        """Where every generation stands."""
        serving = {head.route.formation_id for head in heads}
        return population_of(self._entries, self._ended, self._tombstones, serving)


def _inexact(entry: JournalEntry) -> LedgerEvent:
    lengths = ",".join(map(str, entry.inexact_from))
    name, attributes = entry.request.generation_id, {"from": lengths}
    return LedgerEvent("generation_inexact", name, entry.pipeline_id, attributes)
