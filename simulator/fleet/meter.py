"""What nodes cost: by the second, each at what its offer costs at the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

SECONDS_AN_HOUR = 3600.0
EXACT = 1e-9
"""Sums of floats that should be the same differ by no more than this share."""


class NotConserved(Exception):
    """A run's books do not balance: something came from nowhere, or was lost."""


def same(one: float, other: float) -> bool:
    """But for rounding."""
    return abs(one - other) <= EXACT * max(1.0, abs(one), abs(other))


@dataclass(slots=True)
class NodeLife:
    """From the start of a node to its end."""

    node_id: str
    offer_id: str
    instance_type: str
    began_s: float
    ended_s: float | None = None


@dataclass(slots=True)
class Meter:
    """Adds up as it goes, and can be checked against the lives of all nodes."""

    on_demand_price: Callable[[str], float]
    """Dollars an hour of an instance type."""
    lives: list[NodeLife] = field(default_factory=list)
    prices: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By offer, from when on which price an hour."""
    cost: float = 0.0
    on_demand_cost: float = 0.0
    node_seconds: float = 0.0
    _running: dict[str, NodeLife] = field(default_factory=dict)
    _at_s: float = 0.0

    def priced(self, offer_id: str, price_per_hour: float, now_s: float) -> None:
        """An offer costs this from now on."""
        self.pass_to(now_s)
        self.prices.setdefault(offer_id, []).append((now_s, price_per_hour))

    def began(self, node_id: str, offer_id: str, instance_type: str, now_s: float) -> None:
        """A node starts to run; one that has another process of its name ends with that."""
        self.ended(node_id, now_s)
        life = NodeLife(node_id, offer_id, instance_type, now_s)
        self.lives.append(life)
        self._running[node_id] = life

    def ended(self, node_id: str, now_s: float) -> None:
        """It runs no more, if it did."""
        self.pass_to(now_s)
        life = self._running.pop(node_id, None)
        if life is not None:
            life.ended_s = now_s

    def pass_to(self, now_s: float) -> None:
        """Pays for what runs up to now."""
        hours = (now_s - self._at_s) / SECONDS_AN_HOUR
        for life in self._running.values():
            self.cost += hours * self.prices[life.offer_id][-1][1]
            self.on_demand_cost += hours * self.on_demand_price(life.instance_type)
        self.node_seconds += (now_s - self._at_s) * len(self._running)
        self._at_s = now_s

    def running(self) -> dict[str, int]:
        """Nodes by offer."""
        counts: dict[str, int] = {}
        for life in self._running.values():
            counts[life.offer_id] = counts.get(life.offer_id, 0) + 1
        return counts

    def by_offer(self, now_s: float) -> dict[str, float]:
        """Dollars, from the lives of all nodes and the prices there were."""
        paid: dict[str, float] = {}
        for life in self.lives:
            until_s = now_s if life.ended_s is None else life.ended_s
            paid[life.offer_id] = paid.get(life.offer_id, 0.0) + self._paid(life, until_s)
        return paid

    def _paid(self, life: NodeLife, until_s: float) -> float:
        steps = self.prices[life.offer_id]
        ends = [at_s for at_s, _ in steps[1:]] + [until_s]
        return sum(
            max(0.0, min(until_s, end_s) - max(life.began_s, at_s)) * price / SECONDS_AN_HOUR
            for (at_s, price), end_s in zip(steps, ends, strict=True)
        )

    def check(self, now_s: float) -> None:
        """Raises NotConserved where what was added up is not what the lives of the nodes come
        to."""
        self.pass_to(now_s)
        lived_s = sum((now_s if n.ended_s is None else n.ended_s) - n.began_s for n in self.lives)
        if not same(lived_s, self.node_seconds):
            raise NotConserved(f"{lived_s} node seconds, and {self.node_seconds} paid for")
        paid = sum(self.by_offer(now_s).values())
        if not same(paid, self.cost):
            raise NotConserved(f"{paid} dollars by node, and {self.cost} by the second")
