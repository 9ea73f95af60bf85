"""Models that share a cluster: what each wants, what all may spend, and which of equal nodes each
one has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import InvalidArgument
from services.placement.estimate.cluster import CandidateNode, NodeClass, PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.search.problem import Objective, Planner

BUDGET_SLACK = 1e-9
"""Sums of prices are not exact."""

Counts = tuple[int, ...]
"""Nodes by class."""
Classes = Mapping[NodeClass, Sequence[CandidateNode]]


@dataclass(frozen=True)
class Share:
    """A model that is to have a part of the nodes."""

    name: str
    costs: Costs
    planner: Planner
    objective: Objective
    weight: float = 1.0
    pipeline_count: int = 0
    """Of all nodes: a part forms as many in proportion, one at least. 0: as many as fit."""
    running: tuple[PlacedPipeline, ...] = ()
    """What serves it now."""
    seed: int = 0
    holders: frozenset[str] = frozenset()
    """Nodes that hold weights of it without serving it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and 0 < self.weight <= 1e6):
            raise InvalidArgument("weight lies in (0, 1e6]", field="weight")


@dataclass(frozen=True)
class Limits:
    """Of all shares together; 0 does not bind."""

    budget_per_hour: float = 0.0
    nodes_min: int = 0
    nodes_max: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.budget_per_hour < 1e9:
            raise InvalidArgument("budget_per_hour lies in [0, 1e9)", field="budget_per_hour")
        if 0 < self.nodes_max < self.nodes_min:
            raise InvalidArgument("nodes_max is less than nodes_min", field="nodes_max")

    def excess(self, pipelines: Sequence[PlacedPipeline]) -> float:
        """By how much of them a plan is beyond the limits: 0 where it keeps to all."""
        cost_per_hour = sum(pipeline.cost_per_hour for pipeline in pipelines)
        nodes = sum(len(pipeline.stages) for pipeline in pipelines)
        over = 0.0
        if self.budget_per_hour and cost_per_hour > self.budget_per_hour * (1 + BUDGET_SLACK):
            over += cost_per_hour / self.budget_per_hour - 1
        if self.nodes_max:
            over += max(0, nodes - self.nodes_max) / self.nodes_max
        if self.nodes_min:
            over += max(0, self.nodes_min - nodes) / self.nodes_min
        return over


def owners(shares: Sequence[Share]) -> dict[str, int]:
    """Whose pipelines run on a node, or whose weights it holds."""
    held = {name: index for index, share in enumerate(shares) for name in share.holders}
    runs = {
        name: index
        for index, share in enumerate(shares)
        for pipeline in share.running
        for name in pipeline.node_ids
    }
    return held | runs


def kept(classes: Classes, shares: Sequence[Share], parts: Sequence[Counts]) -> list[list[str]]:
    """Nodes of running pipelines that fit their model's part whole, by share."""
    found: list[list[str]] = []
    for share, part in zip(shares, parts, strict=False):  # nobody's part is the last
        room = Counter(dict(zip(classes, part, strict=True)))
        mine: list[str] = []
        for pipeline in share.running:
            needs = Counter(stage.node.kind for stage in pipeline.stages)
            if all(room[kind] >= count for kind, count in needs.items()):
                room -= needs
                mine += pipeline.node_ids
        found.append(mine)
    return found


def named(
    nodes: Sequence[CandidateNode],
    classes: Classes,
    shares: Sequence[Share],
    parts: Sequence[Counts],
) -> list[tuple[CandidateNode, ...]]:
    """Which of the equal nodes each share has: those of its pipelines that stay whole, then others
    of its own, then whoever is left, in the order in which they were told."""
    left = {kind: {n.node_id: n for n in group} for kind, group in classes.items()}
    stays: dict[str, int] = {}
    for index, names in enumerate(kept(classes, shares, parts)):
        stays |= dict.fromkeys(names, index)
    own = owners(shares)
    chosen: list[set[str]] = [set() for _ in shares]
    for place, (kind, group) in enumerate(classes.items()):
        for wanted in (stays, own, None):
            for index, mine in enumerate(chosen):
                lacking = parts[index][place] - sum(n.node_id in mine for n in group)
                fit = [n for n in left[kind] if wanted is None or wanted.get(n) == index]
                for name in fit[: max(0, lacking)]:
                    mine.add(name)
                    del left[kind][name]
    return [tuple(node for node in nodes if node.node_id in mine) for mine in chosen]


def splits(total: int, parts: int) -> Iterator[Counts]:
    """Every way to give so many equal nodes to so many parts."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in splits(total - first, parts - 1):
            yield (first, *rest)


def moved(
    parts: tuple[Counts, ...], giver: int, taker: int, place: int, count: int
) -> tuple[Counts, ...]:
    """The same, but for so many nodes of a class."""
    changed = [list(part) for part in parts]
    changed[giver][place] -= count
    changed[taker][place] += count
    return tuple(tuple(part) for part in changed)
