"""SkyServe's policy: which zone the next spot replica is launched in, and how many run on demand.

Source: SkyServe (EuroSys'25), SpotHedge. Zones are active or preempted; one that took a replica or
had none is left alone until fewer than two are active, then all are again. Of the active ones the
cheapest comes first, of equal ones that with fewer replicas. What is not ready on spot runs on
demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST_ACTIVE = 2


@dataclass(frozen=True, slots=True)
class Counts:
    """Replicas that there are, or are coming."""

    spot: int
    ready_spot: int
    on_demand: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is lacking; negative: so many are to end."""

    spot: int
    on_demand: int


class SpotHedge:
    """Remembers what zones did."""

    def __init__(self, zones: Sequence[str], target: int, extra: int) -> None:
        """`target`: replicas that should be ready; `extra`: of spot, beyond it."""
        self._active, self._preempted = dict.fromkeys(zones), dict[str, None]()
        self._target, self._extra = target, extra

    def took(self, zone: str) -> None:
        """It took a replica away, or had none to give."""
        self._active.pop(zone, None)
        self._preempted[zone] = None
        if len(self._active) < LEAST_ACTIVE:
            self._active |= self._preempted
            self._preempted = {}

    def gave(self, zone: str) -> None:
        """A replica is ready there."""
        self._preempted.pop(zone, None)
        self._active[zone] = None

    def zone(self, prices: Mapping[str, float], placed: Mapping[str, int]) -> str:
        """Of the next spot replica."""
        return min(self._active, key=lambda zone: (prices[zone], placed.get(zone, 0), zone))

    def step(self, there: Counts) -> Step:
        """Spot up to target and extra; on demand for what of them is not ready, at most the
        target."""
        whole = self._target + self._extra
        on_demand = min(self._target, whole - min(whole, there.ready_spot))
        return Step(whole - there.spot, on_demand - there.on_demand)
