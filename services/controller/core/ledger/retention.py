"""How long generations stay in memory, and what becomes of those that leave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common.exchange import GenerationState, GenerationView
from services.controller.core.ledger.entry import JournalEntry
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.ledger.records import Forgotten, Kept, Record

STORED_AT_ONCE = 64
"""Each is written anew as a whole."""


class Retention:
    """Of all generations: what has ended goes with its age, and where there is too much of it, the
    oldest end first."""

    def __init__(
        self,
        settings: LedgerSettings,
        entries: Mapping[str, JournalEntry],
        ended: Mapping[str, None],
        cancelled_s: Mapping[str, float],
    ) -> None:
        """The ledger's own, to look at: `ended` names those that finished or were cancelled, the
        oldest end first; `cancelled_s` says when each of the latter was."""
        self._settings = settings
        self._entries = entries
        self._ended = ended
        self._cancelled_s = cancelled_s

    def still_open(self) -> dict[str, JournalEntry]:
        """Those that have not ended, in the order they came."""
        return {name: e for name, e in self._entries.items() if name not in self._ended}

    def leaving(self, now_s: float, at_most: int | None) -> list[Record]:
        """What is written of those that leave now, at most so many."""
        old = [*self._old(now_s), *outlived(self.still_open(), self._settings, now_s)]
        waits = set([name for name in old if self._stored_bytes(name)][STORED_AT_ONCE:])
        leave = [name for name in old if name not in waits][:at_most]
        return [self._laid_aside(name) for name in leave]

    def _old(self, now_s: float) -> Iterable[str]:
        """Of those that have ended."""
        surplus = len(self._ended) - self._settings.max_ended
        over_bytes = sum(map(self._stored_bytes, self._ended)) - self._settings.max_ended_bytes
        for number, name in enumerate(self._ended):
            size_bytes = self._stored_bytes(name)
            crowds = number < surplus or (size_bytes > 0 and over_bytes > 0)
            if crowds or now_s - self._last_s(name) >= self._stays_s(name):
                yield name
                over_bytes -= size_bytes

    def _laid_aside(self, name: str) -> Record:
        """What becomes of a generation that leaves memory."""
        entry = self._entries.get(name)
        if entry is None or not entry.stored:
            return Forgotten(name)
        ended = entry.finished and name not in self._cancelled_s
        state = GenerationState.FINISHED if ended else GenerationState.CANCELLED
        view = GenerationView(entry.request, entry.spans(), entry.epoch, None, state, entry.classes)
        return Kept(name, view)

    def _stays_s(self, name: str) -> float:
        """So long an ended generation stays in memory."""
        entry, settings = self._entries.get(name), self._settings
        stored = entry is not None and entry.stored
        return min(settings.kept_after_s, settings.retention_s) if stored else settings.retention_s

    def _stored_bytes(self, name: str) -> int:
        """What an ended generation that is stored holds of memory, beside its ids."""
        entry = self._entries.get(name)
        terms = entry.request.response if entry is not None else None
        return len(terms.details) if terms is not None and terms.store else 0

    def _last_s(self, name: str) -> float:
        """When an ended generation was cancelled, or last asked for."""
        cancelled_s = self._cancelled_s.get(name)
        return self._entries[name].touched_s if cancelled_s is None else cancelled_s


def outlived(
    entries: Mapping[str, JournalEntry], settings: LedgerSettings, now_s: float
) -> list[str]:
    """Which of those that have not ended, in the order they came, are kept no longer: what nobody
    has touched for long, and the first of too many that are parked and wait for their readers."""
    parked = [
        name
        for name, entry in entries.items()
        if entry.sealed and entry.unread and not entry.request.runs_unread
    ]
    surplus = set(parked[: max(0, len(parked) - settings.max_parked)])

    def stays_s(entry: JournalEntry) -> float:
        unread = entry.request.runs_unread
        return settings.stored_retention_s if unread else settings.parked_retention_s

    return [
        name
        for name, entry in entries.items()
        if name in surplus or now_s - entry.touched_s >= stays_s(entry)
    ]
