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
from services.common.generation import CancelReason, FinishReason
from services.controller.abandoned import Abandoned
from services.controller.entry import Entry
from services.controller.outcomes import (
    Head,
    LedgerEvent,
    LedgerSettings,
    Outcome,
)
from services.controller.population import Population, population_of
from services.controller.records import (
    Appended,
    Bound,
    Ended,
    Forgotten,
    Granted,
    Record,
    Sealed,
)


class Ledger:
    """Epochs and journal of all generations."""

    def __init__(self, settings: LedgerSettings) -> None:
        self.settings = settings
        self._entries: dict[str, Entry] = {}
        self._tombstones: dict[str, float] = {}
        """Cancelled generations, known or not, and when."""
        self._complaints: dict[tuple[str, int], float] = {}
        """By generation and epoch: when its reader said that it left a formation."""
        self._left: dict[str, float] = {}
        """Formations that readers left because they do not serve, and when last."""
        self._running: dict[str, set[str]] = {}
        """Generations by the formation that runs them."""
        self._ended: dict[str, None] = {}
        """Finished and cancelled generations, the oldest end first."""
        self._abandoned = Abandoned(settings.retry_window_s, settings.claim_s)

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
        return ledger

    def _apply(self, record: Record, now_s: float) -> None:
        """The one place where a record changes the ledger, now or at recovery."""
        name = record.generation_id
        if isinstance(record, Forgotten):
            self._tombstones.pop(name, None)
            self._ended.pop(name, None)
            self._place(name, self._entries.pop(name, None), False)
            self._abandoned.remove(name)
            return
        entry = self._entries.get(name)
        if entry is None and isinstance(record, (Bound, Granted)):
            self._entries[name] = entry = Entry(record.request, 0, now_s)
        if isinstance(record, Ended) and record.choice is None:
            self._tombstones[name] = now_s
            self._ended.setdefault(name)
            self._abandoned.remove(name)
        if entry is None:
            return
        entry.touched_s = now_s
        self._place(name, entry, False)
        if isinstance(record, Bound):
            entry.give_to(record, 1)
        elif isinstance(record, Granted):
            entry.append(record.spans)
            entry.give_to(record, record.epoch)
        elif isinstance(record, Appended):
            entry.append((record.span,))
        elif isinstance(record, Sealed):
            entry.sealed = True
        elif record.choice is not None:
            choice = entry.choice(record.choice)
            if record.reason is CancelReason.CLIENT:
                choice.finish = choice.finish or FinishReason.CANCELLED
            else:
                choice.stop_length = record.length
        open_here = not entry.sealed and not entry.finished and name not in self._tombstones
        self._place(name, entry, open_here)
        if entry.finished:
            self._ended.setdefault(name)

    def _place(self, name: str, entry: Entry | None, runs: bool) -> None:
        if entry is None:
            return
        names = self._running.setdefault(entry.formation_id, set())
        if runs:
            names.add(name)
        else:
            names.discard(name)
            if not names:
                del self._running[entry.formation_id]

    def _commit(self, records: Sequence[Record], now_s: float) -> tuple[Record, ...]:
        for record in records:
            self._apply(record, now_s)
        return tuple(records)

    def checkpoint(
        self, checkpoint: Checkpoint, pipeline_id: str, now_s: float
    ) -> Outcome[CheckpointResult]:
        """Binds epoch 1 to its first head, appends, compares, or refuses. `pipeline_id` is the
        pipeline of the checkpoint's formation, for the status ('' when not known)."""
        name = checkpoint.generation_id
        records: tuple[Record, ...] = ()
        events: list[LedgerEvent] = []
        if name in self._tombstones:
            return _refused(checkpoint, CheckpointRefusal.ENDED, None)
        if name not in self._entries:
            full = len(self._entries) >= self.settings.max_generations
            if checkpoint.epoch != 1 or checkpoint.request is None or full:
                return _refused(checkpoint, CheckpointRefusal.STALE_EPOCH, None)
            Entry(checkpoint.request, 1, now_s).compare(checkpoint.spans)  # raises before Bound
            bound = Bound(
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
            return _refused(checkpoint, refusal, entry)
        entry.touched_s = now_s
        self._set_unread(entry, checkpoint.unread, now_s)
        new = [Appended(name, span) for span in entry.fresh(checkpoint.spans)]
        records += self._commit(new, now_s)
        complete = all(span.end <= entry.lengths[span.choice] for span in checkpoint.spans)
        if checkpoint.sealed and complete and not entry.sealed:
            records += self._commit([Sealed(name, entry.epoch)], now_s)
            kind = "generation_finished" if entry.finished else "generation_sealed"
            lengths = ",".join(map(str, entry.lengths))
            attributes = {"epoch": str(entry.epoch), "lengths": lengths}
            events.append(LedgerEvent(kind, name, entry.pipeline_id, attributes))
        result = CheckpointResult(name, checkpoint.epoch, entry.lengths)
        return Outcome(result, records, events=tuple(events))

    def _set_unread(self, entry: Entry, unread: bool, now_s: float) -> None:
        name, entry.unread = entry.request.generation_id, unread
        if unread:
            self._abandoned.left(name, entry.request.ask_digest, now_s)
        else:
            self._abandoned.remove(name)

    def _refusal(self, entry: Entry, checkpoint: Checkpoint) -> CheckpointRefusal | None:
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
        self, question: ResumeQuestion, heads: Sequence[Head], now_s: float
    ) -> Outcome[Grant] | None:
        """Grants the next epoch. None: no head to grant to yet; ask again when the heads change,
        and every 0.1 s, until the caller's deadline.

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
            entry = Entry(question.request, question.last_epoch, now_s)
        elif not entry.is_for(question.request):
            raise AlreadyExists("another request has this id", field="generation_id")
        entry.compare(question.held)
        entry.touched_s = now_s
        self._set_unread(entry, False, now_s)
        if entry.finished:
            return Outcome(Grant(entry.epoch, None, entry.spans()))
        if entry.finished_with(question.held):
            return self._grant(entry, question, None, now_s)
        suspects = self._suspects_with(question, now_s)
        holder = next((h for h in heads if h.route.formation_id == entry.formation_id), None)
        if holder is not None and not entry.sealed:
            if question.last_epoch < entry.epoch:
                base = entry.spans(entry.base_lengths)
                same = Outcome(Grant(entry.epoch, holder.route, base))
                return same if holder.takes_new else None
            if holder.hands_over and entry.formation_id in suspects:
                return None  # its seal is on the way: no position shall be sampled twice
        head = self._best(entry, [h for h in heads if h.route.formation_id not in suspects])
        return None if head is None else self._grant(entry, question, head, now_s)

    def _suspects_with(self, question: ResumeQuestion, now_s: float) -> set[str]:
        """Formations that readers left of late because they do not serve. The same question asked
        again is one complaint."""
        key = question.generation_id, question.last_epoch
        if question.left_formation_id and key not in self._complaints:
            self._complaints[key] = self._left[question.left_formation_id] = now_s
        patience_s = self.settings.same_head_after_s
        return {left for left, since_s in self._left.items() if now_s - since_s < patience_s}

    def _best(self, entry: Entry, heads: Sequence[Head]) -> Head | None:
        """The least loaded of the generation's own arithmetic, or of any when there is none; one
        whose KV cache it cannot outgrow."""
        request, wanted = entry.request, entry.request.numerics_class
        positions = len(request.prompt_ids) + request.sampling.max_tokens
        takers = [
            h
            for h in heads
            if h.takes_new and h.route.model == request.model and h.route.max_positions >= positions
        ]
        return min(
            takers,
            key=lambda head: (
                bool(wanted) and head.numerics_class != wanted,
                (len(self._running.get(head.route.formation_id, ())) + 1)
                / max(head.route.throughput_tokens_per_s, 1e-9),
            ),
            default=None,
        )

    def _grant(
        self, entry: Entry, question: ResumeQuestion, head: Head | None, now_s: float
    ) -> Outcome[Grant]:
        name, route = question.generation_id, head.route if head is not None else None
        planned, before = entry.sealed and not question.left_formation_id, entry.pipeline_id
        record = Granted(
            name,
            max(entry.epoch, question.last_epoch) + 1,
            route.incarnation if route is not None else "",
            route.formation_id if route is not None else "",
            route.pipeline_id if route is not None else "",
            entry.request,
            entry.fresh(question.held),
        )
        records = self._commit([record], now_s)
        entry = self._entries[name]
        attributes = {
            "epoch": str(entry.epoch),
            "from": before,
            "planned": str(planned).lower(),
            "base": ",".join(map(str, entry.lengths)),
        }
        began_in = entry.request.numerics_class
        if head is not None and began_in and head.numerics_class != began_in:
            attributes["numerics"] = f"{began_in} to {head.numerics_class}"
        event = LedgerEvent("generation_granted", name, entry.pipeline_id, attributes)
        return Outcome(Grant(entry.epoch, route, entry.spans()), records, True, (event,))

    def cancel(
        self,
        generation_id: str,
        choice: int | None,
        reason: CancelReason,
        length: int | None,
        now_s: float,
    ) -> Outcome[None]:
        """Reason client: a tombstone, for an unknown id too. Reason stop: the choice (or each)
        needs no more than `length` ids, or than there are."""
        entry = self._entries.get(generation_id)
        if reason is CancelReason.CLIENT and choice is None:
            if generation_id in self._tombstones:
                return Outcome(None)
            records = self._commit([Ended(generation_id, None, reason, None)], now_s)
            event = LedgerEvent("generation_cancelled", generation_id)
            return Outcome(None, records, True, (event,))
        if entry is None:
            return Outcome(None)  # its head is told too, and ends it in its checkpoints
        indices = range(len(entry.choices)) if choice is None else (choice,)
        ends = [
            Ended(generation_id, i, reason, len(entry.choice(i).run) if length is None else length)
            for i in indices
            if entry.choice(i).finish is None and entry.choice(i).stop_length is None
        ]
        return Outcome(None, self._commit(ends, now_s), reason is CancelReason.CLIENT)

    def view(
        self, generation_id: str, heads: Sequence[Head], now_s: float
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
        return Outcome(GenerationView(entry.request, entry.spans(), entry.epoch, holder, state))

    def claim(
        self, ask_digest: str, heads: Sequence[Head], now_s: float
    ) -> Outcome[GenerationView]:
        """Gives a client's retry what its first ask began, if nobody reads it. Raises NotFound."""
        name = self._abandoned.claim(ask_digest, now_s)
        if name is None:
            raise NotFound("no such generation is left unread", field="ask_digest")
        if self._entries[name].finished:
            self._abandoned.remove(name)  # nothing will tell that it is read
        return self.view(name, heads, now_s)

    def head_of(self, generation_id: str) -> str | None:
        """Incarnation that holds the generation's epoch, to pass a Cancel on to."""
        entry = self._entries.get(generation_id)
        return entry.incarnation or None if entry is not None else None

    def tick(self, now_s: float, at_most: int | None = None) -> Outcome[None]:
        """Forgets what was kept long enough, the oldest end first; call it every second or so."""
        settings = self.settings
        surplus = len(self._ended) - settings.max_ended
        old = [
            name
            for number, name in enumerate(self._ended)
            if number < surplus or now_s - self._last_s(name) >= settings.retention_s
        ]
        still_open = [item for item in self._entries.items() if item[0] not in self._ended]
        parked = [name for name, entry in still_open if entry.sealed and entry.unread]
        surplus_parked = set(parked[: max(0, len(parked) - settings.max_parked)])
        old += [
            name
            for name, entry in still_open
            if name in surplus_parked or now_s - entry.touched_s >= settings.parked_retention_s
        ]
        self._abandoned.forget(now_s)
        complaints, left = self._complaints.items(), self._left.items()
        kept_s, patience_s = settings.retention_s, settings.same_head_after_s
        self._complaints = {key: since_s for key, since_s in complaints if now_s - since_s < kept_s}
        self._left = {name: since_s for name, since_s in left if now_s - since_s < patience_s}
        return Outcome(None, self._commit([Forgotten(name) for name in old[:at_most]], now_s))

    def _last_s(self, name: str) -> float:
        """When an ended generation was cancelled, or last asked for."""
        cancelled_s = self._tombstones.get(name)
        return self._entries[name].touched_s if cancelled_s is None else cancelled_s

    def population(self, heads: Sequence[Head]) -> Population:
        """Where every generation stands."""
        serving = {head.route.formation_id for head in heads}
        return population_of(self._entries, self._ended, self._tombstones, serving)


def _refused(
    checkpoint: Checkpoint, refusal: CheckpointRefusal, entry: Entry | None
) -> Outcome[CheckpointResult]:
    lengths = entry.lengths if entry is not None else ()
    name = checkpoint.generation_id
    result = CheckpointResult(name, checkpoint.epoch, lengths, refusal)
    attributes = {"epoch": str(checkpoint.epoch), "refusal": refusal.value}
    return Outcome(result, events=(LedgerEvent("checkpoint_refused", name, "", attributes),))
