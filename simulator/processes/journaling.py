"""A simulated controller's journal: a store that can be cut off, and what routers ask it for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from services.common.errors import NotFound, ShuntError
from services.common.exchange import GenerationView
from services.common.generation import CancelReason
from services.controller.core.ledger.outcomes import Outcome
from services.controller.core.ledger.records import Forgotten, Kept, Record
from simulator.environment.network import Reply
from simulator.processes.controlling import Controlling


def stored(records: Sequence[Record], name: str) -> GenerationView | None:
    """What has left memory for the store, where it was not deleted since."""
    for record in reversed(records):
        if record.generation_id == name and isinstance(record, Forgotten | Kept):
            return record.view if isinstance(record, Kept) else None
    return None


class Journaling(Controlling):
    """What becomes durable, and what is answered once it is."""

    records: list[Record]
    """Durable."""

    def begin_journal(self, records: list[Record]) -> None:
        """With what is there already."""
        self.records = records
        self.pending: list[tuple[tuple[Record, ...], Callable[[], None]]] = []
        """On the way to the store, with what is told behind it."""
        self._committing = False

    def commit(self, outcome: Outcome[Any], reply: Reply) -> None:
        """Answers once all there is by now is durable."""
        for event in outcome.events:
            self.monitor.ledger_event(event)
        if not outcome.records and not self.pending:
            reply(outcome.reply)
            return
        self.pending.append((outcome.records, lambda: reply(outcome.reply)))
        if not self._committing:
            self._committing = True
            self.after(0.001 + 0.004 * self.environment.random.random(), self._committed)

    def _committed(self) -> None:
        pending, self.pending = self.pending, []
        self._committing = False
        for records, _ in pending:
            self.monitor.durable(self.ledger, records)
            self.records.extend(records)
        for _, release in pending:
            release()

    def cancel(
        self, reply: Reply, name: str, choice: int | None, reason: CancelReason, length: int | None
    ) -> None:
        """Ends a generation or a choice."""
        self.commit(self.ledger.cancel(name, choice, reason, length, self.clock.now_s), reply)

    def view(self, reply: Reply, name: str) -> None:
        """What the journal holds."""
        try:
            now_s = self.clock.now_s
            outcome = self.ledger.view(name, self.cluster.view.heads(now_s), now_s)
        except NotFound as error:
            unknown = error
            self.commit(Outcome(None), lambda _: reply(stored(self.records, name) or unknown))
            return
        self.commit(outcome, reply)

    def claim(self, reply: Reply, ask_digest: str) -> None:
        """A client's retry looks for its first ask."""
        try:
            now_s = self.clock.now_s
            outcome = self.ledger.claim(ask_digest, self.cluster.view.heads(now_s), now_s)
        except ShuntError as error:
            reply(error)
            return
        self.commit(outcome, reply)

    def claim_background(self, reply: Reply, at_most: int) -> None:
        """A router asks for what runs unread and has lost its reader."""
        now_s = self.clock.now_s
        heads = self.cluster.view.heads(now_s)
        self.commit(self.ledger.claim_background(heads, now_s, at_most), reply)

    def delete(self, reply: Reply, name: str) -> None:
        """Nothing of a generation is to be left."""
        self.commit(self.ledger.delete(name, self.clock.now_s), reply)
