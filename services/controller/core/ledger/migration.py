"""Whether a generation moves when its reader asks for its next epoch, and to which head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.exchange import LeaveReason, ResumeQuestion
from services.controller.core.ledger.entry import JournalEntry
from services.controller.core.ledger.granting import Complaints, Patience, is_expected
from services.controller.core.ledger.outcomes import Coming, LedgerSettings, ServingHead
from services.controller.core.ledger.running import Running


class Decision(NamedTuple):
    """The head that a reader is answered with."""

    head: ServingHead
    moves: bool
    """It is granted the next epoch there; else it goes on in the one there is."""


class Migration:
    """Of all generations; who asks has looked whether they may go on at all."""

    def __init__(self, settings: LedgerSettings, running: Running) -> None:
        self._settings = settings
        self._running = running
        self._complaints = Complaints(settings.same_head_after_s, settings.retention_s)
        self._patience = Patience(settings.own_arithmetic_s)
        self._doubts = Patience(settings.doubt_s)

    def decide(
        self,
        entry: JournalEntry,
        question: ResumeQuestion,
        heads: Sequence[ServingHead],
        now_s: float,
        coming: Coming,
    ) -> Decision | None:
        """None: not yet; asked again when the heads change, and now and then."""
        name = question.generation_id
        formation_id = entry.formation_id or question.left_formation_id
        own = (head for head in heads if head.route.model == entry.request.model)
        holder = next((h for h in own if h.route.formation_id == formation_id), None)
        if holder is None or entry.sealed:
            return self._move(entry, question, heads, now_s, coming)
        if question.last_epoch < entry.epoch:
            return _stays(holder) if holder.takes_new or holder.departs else None
        if holder.hands_over and question.left_formation_id:
            return None  # its seal is on the way: no position shall be sampled twice
        if question.reason not in (LeaveReason.SILENT, LeaveReason.UNREACHABLE):
            return self._move(entry, question, heads, now_s, coming)
        if question.reason is LeaveReason.SILENT and not holder.stalled:
            return _stays(holder)  # slow is not dead
        others = [head for head in heads if head is not holder]
        if others and not holder.stalled and question.unheard_s < self._settings.unheard_s:
            if self._doubts.waits(name, now_s):
                return None  # if it died, that is known in a moment
            self._doubts.over(name)
            return _stays(holder)
        moved = self._elsewhere(entry, question, heads, now_s, coming, left=holder)
        if moved is None and not holder.stalled:
            return _stays(holder)  # another epoch there would bring its reader no nearer
        return moved

    def over(self, name: str) -> None:
        """It was granted, or is gone: it waits for nothing, and nothing is promised it."""
        self._patience.over(name)
        self._doubts.over(name)
        self._running.over(name)

    def forget(self, now_s: float) -> None:
        """Lets go of what is too old; call it now and then."""
        self._complaints.forget(now_s)

    def _move(
        self,
        entry: JournalEntry,
        question: ResumeQuestion,
        heads: Sequence[ServingHead],
        now_s: float,
        coming: Coming,
    ) -> Decision | None:
        """Elsewhere; who leaves a formation that served it to the end waits for what follows it, or
        all would be moved to those that are left, and from these again. What was handed on waits
        for nothing: others of the plan serve on."""
        leaves = not question.left_formation_id and not entry.handed_on
        if leaves and any(head.switching for head in heads):
            return None
        return self._elsewhere(entry, question, heads, now_s, coming)

    def _elsewhere(
        self,
        entry: JournalEntry,
        question: ResumeQuestion,
        heads: Sequence[ServingHead],
        now_s: float,
        coming: Coming,
        left: ServingHead | None = None,
    ) -> Decision | None:
        """At the best head, but the one it leaves, that no reader has left of late; not yet at one
        of other arithmetic while one of its own is expected."""
        suspects = self._complaints.suspects_with(question, now_s)
        trusted = [
            head for head in heads if head is not left and head.route.formation_id not in suspects
        ]
        head, had = self._running.best(entry, question, trusted, heads), entry.numerics_class
        if head is None:
            return None
        other = bool(had) and had != head.numerics_class
        if (
            other
            and is_expected(entry.request, had, heads, coming)
            and self._patience.waits(question.generation_id, now_s)
        ):
            return None
        return Decision(head, True)


def _stays(holder: ServingHead) -> Decision:
    return Decision(holder, False)
