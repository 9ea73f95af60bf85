"""For how long no reader of this router has heard from each head.

A stream that brings nothing while others of the same head do is slow or lost; its head is neither,
and is reached from here. So no reader leaves a head that another one hears.

Time counts only as far as it was watched: a router that had no core for a while has heard nobody,
and that is no head's silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf


class Hearing:
    """By formation."""

    def __init__(self, glance_s: float) -> None:
        """Between two looks up to `glance_s` count."""
        self._glance_s = glance_s
        self._looked_s = inf
        self._watched_s = 0.0
        self._heard_s: dict[str, float] = {}
        """When each was heard last, as far as time was watched."""

    def look(self, now_s: float) -> None:
        """Time has passed: to be told every `glance_s / 2` or so."""
        self._watched_s += min(max(0.0, now_s - self._looked_s), self._glance_s)
        self._looked_s = now_s

    def hears(self, formation_id: str) -> None:
        """A frame came from its head."""
        self._heard_s[formation_id] = self._watched_s

    def silent_s(self, formation_id: str) -> float:
        """Since the last look before a frame came; infinite where none has."""
        return self._watched_s - self._heard_s.get(formation_id, -inf)

    def keep(self, formation_ids: Iterable[str]) -> None:
        """The other formations are gone."""
        kept = set(formation_ids)
        self._heard_s = {name: at_s for name, at_s in self._heard_s.items() if name in kept}
