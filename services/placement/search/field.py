"""The field a search plays on: classes of equal nodes, stage options, candidate pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import (
    CandidateNode,
    Inventory,
    NodeClass,
    PlacedPipeline,
    PlacedStage,
    inventory,
)
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.columns import Candidate, Columns, Members
from services.placement.search.problem import Problem, nothing_fits
from services.placement.search.rates import Ints, Option, RateTables, options

MAX_STAGES = 40


@dataclass(frozen=True)
class SearchField:
    """Classes with their nodes, and what can be built of them."""

    problem: Problem
    stock: Inventory
    options: tuple[Option, ...]
    columns: Columns

    @property
    def counts(self) -> Ints:
        return np.asarray(self.stock.counts, dtype=np.int64)

    @property
    def backends(self) -> Ints:
        """The backend of each option, as a number [options]: one pipeline has one."""
        names = [kind.backend for kind in self.stock.kinds]
        return np.array([names.index(names[option.kind]) for option in self.options])

    def usage(self, members: Sequence[Members]) -> Ints:
        """Nodes [members, classes] each one takes."""
        kinds = np.array([option.kind for option in self.options])
        out = np.zeros((len(members), len(self.stock.kinds)), dtype=np.int64)
        for row, group in enumerate(members):
            np.add.at(out[row], kinds[list(group)], 1)
        return out

    def build(
        self, candidates: Sequence[Candidate], phase: PipelinePhase = PipelinePhase.BOTH
    ) -> tuple[PlacedPipeline, ...]:
        """Pipelines of real nodes, each node once."""
        free = [list(group) for group in self.stock.nodes]
        pipelines = []
        for candidate in candidates:
            stages, start = [], 0
            for o, layers in zip(candidate.order, candidate.split.layers, strict=True):
                node = free[self.options[o].kind].pop(0)
                stages.append(PlacedStage(node, start, start + layers, self.options[o].tp))
                start += layers
            pipelines.append(PlacedPipeline(tuple(stages), phase))
        return tuple(pipelines)


def field(
    problem: Problem,
    tp: int = 0,
    phase: PipelinePhase = PipelinePhase.BOTH,
    *,
    budget: SearchBudget = UNLIMITED,
    by_price: bool = False,
    tolerance: float = 2e-4,
) -> SearchField:
    """The field of a problem; FailedPrecondition when no stage can be run at all (at that degree),
    DeadlineExceeded when the budget is over before the stages' times are known.

    Classes that differ in price, pool or market alone are one class unless `by_price`.
    """
    stock = inventory(problem.nodes) if by_price else alike(problem.nodes)
    chosen = options(problem.costs, stock.kinds, tp, budget)
    if not chosen:
        raise nothing_fits(problem)
    longest = min(len(problem.nodes), problem.costs.model.layers, MAX_STAGES)
    tables = RateTables(problem.costs, chosen, longest, phase, budget)
    return SearchField(problem, stock, tuple(chosen), Columns(tables, tolerance, budget))


def alike(nodes: Sequence[CandidateNode]) -> Inventory:
    """Nodes grouped by what decides their speed, the cheapest first."""
    groups: dict[NodeClass, list[CandidateNode]] = {}
    for node in sorted(nodes, key=lambda node: node.kind.price_per_hour):
        groups.setdefault(node.kind.performance, []).append(node)
    return Inventory(tuple(groups), tuple(tuple(group) for group in groups.values()))
