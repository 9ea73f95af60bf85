"""What a mesh costs beside its nodes: what stands there as long as the stack does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_HOURS_A_MONTH = 730.0
_PER_HOUR: Mapping[str, float] = {
    "c7i.large": 0.08925,
    "c7i.xlarge": 0.1785,
    "c7i.2xlarge": 0.357,
    "m7i.large": 0.1008,
    "m7i.xlarge": 0.2016,
    "m7i.2xlarge": 0.4032,
    "t3.medium": 0.0416,
    "t3.large": 0.0832,
}
"""On demand, us-east-1, dollars an hour, from the EC2 price list; they age."""
_LOAD_BALANCER_PER_HOUR = 0.0225
_ADDRESS_PER_HOUR = 0.005
"""A public IPv4 address."""
_GIB_MONTH = 0.08
"""Of a gp3 volume."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The parts of the stack that cost money by the hour."""

    controller_type: str
    router_type: str
    routers: int
    journal_gib: int
    zones: int

    @property
    def rows(self) -> tuple[tuple[str, float | None], ...]:
        """What it is, and dollars an hour; None where the type's price is not known here."""
        router = _PER_HOUR.get(self.router_type)
        addresses = 1 + self.routers + self.zones  # of each host, and of the balancer in each zone
        return (
            (f"controller ({self.controller_type})", _PER_HOUR.get(self.controller_type)),
            (
                f"{self.routers} routers ({self.router_type})",
                None if router is None else router * self.routers,
            ),
            ("load balancer", _LOAD_BALANCER_PER_HOUR),
            (f"{addresses} public addresses", addresses * _ADDRESS_PER_HOUR),
            (f"journal ({self.journal_gib} GiB)", self.journal_gib * _GIB_MONTH / _HOURS_A_MONTH),
        )

    @property
    def per_hour(self) -> float | None:
        """None where one of them is not known."""
        prices = [price for _, price in self.rows]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None


def standing_of(parameters: Mapping[str, str], routers: int) -> Standing:
    """Of a stack with these parameters, and so many routers."""
    return Standing(
        parameters["ControllerType"],
        parameters["RouterType"],
        routers,
        int(parameters["JournalGiB"]),
        int(parameters["Zones"]),
    )
