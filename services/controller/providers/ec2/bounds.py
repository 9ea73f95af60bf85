"""What may be bought at most, whatever plan, price or mistake asks for more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum

from services.common.errors import InvalidArgument, ResourceExhausted

MAX_INSTANCES = 10_000
MAX_DOLLARS_PER_HOUR = 1e6
_SLACK = 1e-9
"""Sums of prices are not exact."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of all that is paid for together. Raises InvalidArgument."""

    instances: int
    dollars_per_hour: float
    """At the most that each may cost: on demand, which a spot price never exceeds."""

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= MAX_INSTANCES:
            raise InvalidArgument(
                f"max_instances lies in [1, {MAX_INSTANCES}]", field="max_instances"
            )
        if not 0 < self.dollars_per_hour <= MAX_DOLLARS_PER_HOUR:
            raise InvalidArgument(
                f"max_dollars_per_hour lies in (0, {MAX_DOLLARS_PER_HOUR:g}]",
                field="max_dollars_per_hour",
            )

    def admit(self, paid: Iterable[float], one_more: float) -> None:
        """`paid` has the dollars an hour of all that runs or may run. Raises ResourceExhausted,
        naming the limit that one more would pass."""
        dollars = [*paid, one_more]
        if len(dollars) > self.instances:
            raise ResourceExhausted(
                f"max_instances is {self.instances}, and so many run", field="max_instances"
            )
        total = fsum(dollars)
        if not total <= self.dollars_per_hour * (1 + _SLACK):  # nor is NaN within
            raise ResourceExhausted(
                f"max_dollars_per_hour is {self.dollars_per_hour:g}; with one more it would be"
                f" {total:g}",
                field="max_dollars_per_hour",
            )
