"""What the controller's provider launches nodes from, as its settings tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Literal

from services.common.backends import parse_backends
from services.common.host import usable_cores
from services.common.nodes import Backend, NodeShape
from services.common.speeds import parse_speeds
from services.controller.core.cluster.market import MAX_COUNT, Offer
from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.providers.market_file import MarketScript
from services.controller.providers.pacing import cores_per_speed

Provider = Literal["local", "docker", "ec2", "external"]


@dataclass(frozen=True)
class Supply:
    """Nodes at first, and offers, of one provider."""

    provider: Provider
    ec2: Ec2Settings
    market: MarketScript | None
    """Of a local provider, where a file says what is offered."""
    node_speeds: str
    node_backend: str
    memory_bytes: int
    device_type: str
    ranks: int
    """Of each node, at least."""
    nodes_min: int
    nodes_max: int
    budget_per_hour: float

    @cached_property
    def initial_nodes(self) -> tuple[NodeShape, ...]:
        """Nodes the provider launches at the first start: as `node_speeds` has them, over and over
        up to `nodes_min`, and no more than `nodes_max` and the budget allow."""
        if self.provider == "external":
            return ()
        if self.provider == "ec2":
            shapes = self.ec2.shapes
            return shapes[: self.nodes_max] if self.nodes_max else shapes
        kinds = kinds_of(self.node_speeds, self.node_backend)
        count = max(len(kinds), self.nodes_min)
        count = min(count, self.nodes_max) if self.nodes_max else count
        kinds = list(islice(cycle(kinds), count))
        if self.market is not None:
            shapes = self.market.shapes(kinds)
            return shapes[: affordable(self.market.offers, shapes, self.budget_per_hour)]
        return tuple(
            NodeShape(self.memory_bytes, speed, self.device_type, self.ranks, backend)
            for speed, backend in kinds
        )

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What a local provider offers at first, or one of containers."""
        if self.market is not None:
            return self.market.offers
        return tuple(
            Offer(self._offer_id(shape), self.provider, shape, count=MAX_COUNT, declared=True)
            for shape in dict.fromkeys(self.initial_nodes)
        )

    def _offer_id(self, shape: NodeShape) -> str:
        """By its speed, and by its backend where that is not the only one."""
        same = len(set(parse_backends(self.node_backend))) == 1
        return f"{self.provider}-{shape.relative_speed}" + ("" if same else f"-{shape.backend}")

    @property
    def longest_launch_s(self) -> float:
        """From an order to the start of its process."""
        if self.provider == "ec2":
            return self.ec2.table.longest_launch_s
        return max((offer.launch_s for offer in self.offers), default=0.0)

    def core_share(self, relative_speed: float) -> float:
        """Of a core, for a local node: as its market declares its speed, or a whole one."""
        if self.market is None:
            return 1.0
        counts = self.market.most_by_speed() or {relative_speed: 1}
        most_nodes = max(1, self.nodes_max or len(self.initial_nodes))
        return min(1.0, relative_speed * cores_per_speed(counts, most_nodes, usable_cores()))


def affordable(offers: Sequence[Offer], shapes: Sequence[NodeShape], budget: float) -> int:
    """How many of the first shapes a budget buys at the cheapest offers; 0 does not bind."""
    if not budget:
        return len(shapes)
    total = 0.0
    for count, shape in enumerate(shapes):
        total += min(offer.price_per_hour or 0.0 for offer in offers if offer.shape == shape)
        if total > budget:
            return count
    return len(shapes)


def kinds_of(speeds: str, backends: str) -> list[tuple[float, Backend]]:
    """Speed and backend of each node: the backends are of its pipelines, in turn."""
    parts = zip(parse_speeds(speeds) if speeds else (), cycle(parse_backends(backends)))
    return [(speed, backend) for part, backend in parts for speed in part]
