"""Generations that run though nobody reads them: who has no reader is offered to a router.

The controller starts nothing, and neither does a head go on at another: that is for readers. So
what has lost its reader, or the head that it had, is given one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from services.controller.core.ledger.entry import JournalEntry


class Background:
    """Those that have not ended, the oldest first; times in seconds that never fall."""

    def __init__(self, claim_s: float) -> None:
        self._claim_s = claim_s
        self._free_at_s: dict[str, float] = {}
        """By name: claimed, or just begun, until then."""

    def __len__(self) -> int:
        return len(self._free_at_s)

    def began(self, name: str, now_s: float) -> None:
        """Whoever asked for it is about to read it."""
        self._free_at_s[name] = now_s + self._claim_s

    def remove(self, name: str) -> None:
        """It has ended."""
        self._free_at_s.pop(name, None)

    def claim(
        self,
        entries: Mapping[str, JournalEntry],
        serving: Container[str],
        now_s: float,
        at_most: int,
    ) -> list[str]:
        """The caller's to read, for a while; `serving` are the formations that run generations."""
        claimed: list[str] = []
        for name, free_at_s in self._free_at_s.items():
            if len(claimed) == at_most:
                break
            if now_s >= free_at_s and self._is_alone(entries[name], serving, now_s):
                claimed.append(name)
        for name in claimed:
            self._free_at_s[name] = now_s + self._claim_s
        return claimed

    def _is_alone(self, entry: JournalEntry, serving: Container[str], now_s: float) -> bool:
        """No reader, or none that went on when its head was gone."""
        left = entry.sealed or entry.formation_id not in serving
        return entry.unread or (left and now_s - entry.heard_s >= self._claim_s)
