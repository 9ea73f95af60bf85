"""What the planners of other systems share: groups of nodes made into pipelines with our split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product

import numpy as np

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import CandidateNode
from services.placement.search.budget import SearchBudget
from services.placement.search.columns import Candidate
from services.placement.search.field import SearchField, field
from services.placement.search.problem import Problem

MAX_CHOICES = 16


class Groups:
    """Rates of groups of nodes, nodes of one class at one TP degree, computed once a group."""

    def __init__(self, ground: SearchField) -> None:
        self.ground = ground
        self._options = [
            [o for o, option in enumerate(ground.options) if option.kind == kind]
            for kind in range(len(ground.stock.kinds))
        ]
        self._known: dict[tuple[int, ...], Candidate | None] = {}

    def fastest(self, kind: int) -> int | None:
        """The option of a class that decodes one sequence soonest; None when it holds nothing."""
        mine = self._options[kind]
        options = self.ground.options
        return min(mine, key=lambda o: float(options[o].cost.decode_layer_s(1.0)), default=None)

    def candidate(self, kinds: Sequence[int]) -> Candidate | None:
        """The group's best pipeline; None when the model does not fit (early rejection), or its
        nodes have several backends."""
        key = tuple(sorted(kinds))
        if key not in self._known:
            self._known[key] = self._solve(key)
        return self._known[key]

    def rate(self, kinds: Sequence[int]) -> float:
        """Requests a second of a group; 0 when the model does not fit."""
        candidate = self.candidate(kinds)
        return candidate.split.rate_rps if candidate else 0.0

    def _solve(self, kinds: tuple[int, ...]) -> Candidate | None:
        if not kinds or len(kinds) > self.ground.columns.tables.longest:
            return None
        distinct = sorted(set(kinds))
        if len({self.ground.stock.kinds[kind].backend for kind in distinct}) > 1:
            return None
        choices = islice(product(*(self._options[kind] for kind in distinct)), MAX_CHOICES)
        rows = [sorted(choice[distinct.index(kind)] for kind in kinds) for choice in choices]
        if not rows:
            return None
        bounds = self.ground.columns.bounds(np.asarray(rows), every_tail=True)
        best: Candidate | None = None
        for i in np.argsort(-bounds, kind="stable"):
            if bounds[i] <= (best.split.rate_rps if best else 0.0):
                break
            found = self.ground.columns.solve(tuple(rows[i]))
            if found and (best is None or found.split.rate_rps > best.split.rate_rps):
                best = found
        return best


def groups(
    problem: Problem, budget: SearchBudget, phase: PipelinePhase = PipelinePhase.BOTH
) -> Groups:
    """Raises DeadlineExceeded when the budget is over before the stages' times are known."""
    return Groups(field(problem, phase=phase, budget=budget, tolerance=1e-3))


def kinds_of(ground: SearchField) -> list[int]:
    """The class of every node, node by node."""
    return [kind for kind, group in enumerate(ground.stock.nodes) for _ in group]


def nodes_of(ground: SearchField) -> list[CandidateNode]:
    """Every node in the order of `kinds_of`."""
    return [node for group in ground.stock.nodes for node in group]
