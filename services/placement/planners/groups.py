"""What the planners of other systems share: groups of nodes made into pipelines with our split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.placement.cluster import Node, Phase
from services.placement.columns import Candidate, Members
from services.placement.field import Field, field
from services.placement.problem import Problem


@dataclass(frozen=True)
class Groups:
    """Rates of groups of nodes, each at its class's best TP degree, computed once a multiset."""

    ground: Field
    option_of: tuple[int, ...]  # by class; -1 when the class can hold nothing

    def members(self, kinds: Sequence[int]) -> Members | None:
        chosen = sorted(self.option_of[kind] for kind in kinds)
        if not chosen or chosen[0] < 0 or len(chosen) > self.ground.columns.tables.longest:
            return None
        return tuple(chosen)

    def candidate(self, kinds: Sequence[int]) -> Candidate | None:
        members = self.members(kinds)
        return None if members is None else self.ground.columns.solve(members)

    def rate(self, kinds: Sequence[int]) -> float:
        """Requests a second of a group; 0 when the model does not fit (early rejection)."""
        candidate = self.candidate(kinds)
        return candidate.split.rate_rps if candidate else 0.0


def groups(problem: Problem, phase: Phase = Phase.BOTH) -> Groups:
    ground = field(problem, phase=phase, tolerance=1e-3)
    best: list[int] = []
    for kind in range(len(ground.stock.kinds)):
        mine = [o for o, option in enumerate(ground.options) if option.kind == kind]
        best.append(max(mine, key=lambda o: _worth(ground, o)) if mine else -1)
    return Groups(ground, tuple(best))


def _worth(ground: Field, option: int) -> float:
    """Speed of one sequence's decode: more devices, unless their links eat it."""
    return -float(ground.options[option].cost.decode_layer_s(1.0))


def kinds_of(ground: Field) -> list[int]:
    """The class of every node, node by node."""
    return [kind for kind, group in enumerate(ground.stock.nodes) for _ in group]


def nodes_of(ground: Field) -> list[Node]:
    """Every node in the order of `kinds_of`."""
    return [node for group in ground.stock.nodes for node in group]
