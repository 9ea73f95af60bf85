"""Offers that said no, and for how long each is left alone.

A pool that has nothing is asked again behind a pause, which doubles with every refusal in a row: a
plan made of it costs every time what it moves, and gains nothing. What the offer said is the first
pause; a node that came of it ends the row, and so does more of it, or a long time without a no.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from services.controller.core.cluster.backoff import Backoff

LONGEST_S = 1800.0
"""A pause grows no longer, where nobody says otherwise."""


class Pauses:
    """By offer."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._until_s: dict[str, float] = {}
        self._rows: dict[str, Backoff] = {}

    def begin(self, offer_id: str, pause_s: float, now_s: float) -> int:
        """The offer said no, and to leave it alone for so long at first. How many refusals in a row
        that makes; 0 where one within the same pause counted already."""
        row = self._rows.setdefault(offer_id, Backoff())
        if now_s > row.retry_at_s + self._longest_s:
            row.succeed()
        before = row.failures
        longest_s = max(pause_s, self._longest_s)
        row.fail(now_s, offer_id, first_s=pause_s, longest_s=longest_s)
        until_s = max(row.retry_at_s, now_s + pause_s)
        self._until_s[offer_id] = max(until_s, self._until_s.get(offer_id, -inf))
        return row.failures if row.failures > before else 0

    def kept_its_word(self, offer_id: str) -> None:
        """A node came of the offer: its next no is the first again."""
        self._rows.pop(offer_id, None)

    def end(self, offer_id: str) -> None:
        """There is more of the offer: it may be asked at once."""
        self._until_s.pop(offer_id, None)
        self._rows.pop(offer_id, None)

    def forget_but(self, offer_ids: Collection[str]) -> None:
        """No other offers are there any more."""
        self._until_s = {k: v for k, v in self._until_s.items() if k in offer_ids}
        self._rows = {k: v for k, v in self._rows.items() if k in offer_ids}

    def goes_on(self, offer_id: str, now_s: float) -> bool:
        """The offer is to be left alone still."""
        return now_s < self._until_s.get(offer_id, -inf)

    def ends_s(self) -> dict[str, float]:
        """When each ends, or did."""
        return dict(self._until_s)
