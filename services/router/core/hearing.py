"""When any reader of this router last heard from each head.

A stream that brings nothing while others of the same head do is slow or lost; its head is neither,
and is reached from here. So no reader leaves a head that another one hears.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf


class Hearing:
    """By formation."""

    def __init__(self) -> None:
        self._heard_s: dict[str, float] = {}

    def hears(self, formation_id: str, now_s: float) -> None:
        """A frame came from its head."""
        self._heard_s[formation_id] = now_s

    def last_s(self, formation_id: str) -> float:
        """When the last one came; minus infinity: none has."""
        return self._heard_s.get(formation_id, -inf)

    def keep(self, formation_ids: Iterable[str]) -> None:
        """The other formations are gone."""
        kept = set(formation_ids)
        self._heard_s = {name: at_s for name, at_s in self._heard_s.items() if name in kept}
