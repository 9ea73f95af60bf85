"""How often nodes on spot are interrupted: a table's word, corrected by what was seen.

A pool's rate is the mean of a Gamma posterior: the table counts as `PRIOR_HOURS` of a node's life,
and what was seen fades, so that a bad week is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, log
from typing import Any

from services.common.errors import DataLoss

PRIOR_HOURS = 24.0
"""Of one node: after so much of its life, what was seen weighs as much as the table."""
HALF_LIFE_HOURS = 72.0
"""What was seen so long ago counts half."""
LEAST_HOURS = 1e-6
"""What has faded to this is forgotten."""
STEP = 1.25
"""Rates are told in steps of this ratio, so that offers stand still while nothing happens."""


@dataclass(slots=True)
class _Seen:
    hours: float = 0.0
    interruptions: float = 0.0


class Hazards:
    """By pool: hours that nodes lived, and how often they were interrupted."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def per_hour(self, pool: str, expected: float) -> float:
        """`expected` is the table's word."""
        seen = self._seen.get(pool)
        if seen is None:
            return expected
        rate = (expected * PRIOR_HOURS + seen.interruptions) / (PRIOR_HOURS + seen.hours)
        unit = expected or 1 / PRIOR_HOURS
        return unit * STEP ** round(log(rate / unit, STEP)) if rate else 0.0

    def lived(self, nodes: Mapping[str, int], hours: float) -> None:
        """So long so many nodes of each pool were there; everything else fades meanwhile."""
        if not hours > 0:  # nor does NaN last
            return
        fade = 0.5 ** (hours / HALF_LIFE_HOURS)
        for pool, count in nodes.items():
            self._seen.setdefault(pool, _Seen()).hours += count * hours
        for pool, seen in list(self._seen.items()):
            seen.hours, seen.interruptions = seen.hours * fade, seen.interruptions * fade
            if max(seen.hours, seen.interruptions) < LEAST_HOURS:
                del self._seen[pool]

    def interrupted(self, pool: str) -> None:
        """A node was, or has notice."""
        self._seen.setdefault(pool, _Seen()).interruptions += 1

    def to_json(self) -> dict[str, dict[str, float]]:
        """As plain data."""
        return {pool: asdict(seen) for pool, seen in sorted(self._seen.items())}

    @classmethod
    def from_json(cls, document: Any) -> Hazards:
        """Raises DataLoss for what `to_json` never gave."""
        hazards = cls()
        try:
            for pool, seen in document.items():
                hours, interruptions = float(seen["hours"]), float(seen["interruptions"])
                if not (isfinite(hours + interruptions) and min(hours, interruptions) >= 0):
                    raise ValueError(f"no number of hours, of {pool}")
                hazards._seen[str(pool)] = _Seen(hours, interruptions)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"what was seen of interruptions cannot be read: {error}") from error
        return hazards
