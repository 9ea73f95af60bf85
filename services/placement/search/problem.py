"""What every planner is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from services.common.errors import FailedPrecondition, InvalidArgument, ShuntError
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    by_backend,
    check_nodes,
)
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import GIB
from services.placement.search.budget import SearchBudget, out_of_time

MAX_RUNNERS_UP = 16


class ObjectiveKind(Enum):
    """What a better plan has more of."""

    THROUGHPUT = "throughput"
    THROUGHPUT_PER_COST = "throughput-per-cost"
    GOODPUT_PER_COST = "goodput-per-cost"


@dataclass(frozen=True)
class Objective:
    """What to maximise, and within which limits; 0 does not bind."""

    kind: ObjectiveKind = ObjectiveKind.THROUGHPUT
    budget_per_hour: float = 0.0
    ttft_target_s: float = 0.0
    tpot_target_s: float = 0.0
    uniform_tp: bool = False
    min_on_demand_share: float = 0.0
    recovery_s: float = 120.0
    allow_phase_split: bool = False

    def __post_init__(self) -> None:
        for name in ("budget_per_hour", "ttft_target_s", "tpot_target_s", "recovery_s"):
            if not 0 <= getattr(self, name) < 1e9:
                raise InvalidArgument(f"{name} must be from 0 to 1e9", field=name)
        if not 0 <= self.min_on_demand_share <= 1:
            raise InvalidArgument(
                "min_on_demand_share must be from 0 to 1", field="min_on_demand_share"
            )

    @property
    def untimed(self) -> Objective:
        """The same without its latency targets."""
        return replace(self, ttft_target_s=0.0, tpot_target_s=0.0)


@dataclass(frozen=True)
class Problem:
    """A cluster, a model under a workload (in `costs`), and what is wanted."""

    costs: Costs
    nodes: tuple[CandidateNode, ...]
    objective: Objective = field(default_factory=Objective)
    pipeline_count: int = 0
    seed: int = 0
    runners_up: int = 0
    """Most other plans that the answer tells of, where the planner knows some."""

    def __post_init__(self) -> None:
        check_nodes(self.nodes)
        if not 0 <= self.pipeline_count <= len(self.nodes):
            raise InvalidArgument(
                f"pipeline_count must be from 0 to the {len(self.nodes)} nodes there are",
                field="pipeline_count",
            )
        if not 0 <= self.runners_up <= MAX_RUNNERS_UP:
            raise InvalidArgument(
                f"runners_up must be from 0 to {MAX_RUNNERS_UP}", field="runners_up"
            )


@dataclass(frozen=True)
class Solution:
    """A planner's answer."""

    pipelines: tuple[PlacedPipeline, ...]
    complete: bool = True
    upper_bound_rps: float | None = None
    reasons: tuple[str, ...] = ()
    runners_up: tuple[tuple[PlacedPipeline, ...], ...] = ()
    """Other plans that were looked at, the best first."""
    late: str = ""
    """Which latency target it misses by how much; empty where it keeps all."""


class Planner(Protocol):
    """Searches until it is done or the budget is. FailedPrecondition when nothing fits,
    DeadlineExceeded when the budget was over before there was a plan."""

    def __call__(self, problem: Problem, budget: SearchBudget) -> Solution: ...


def of_the_model(problem: Problem) -> Problem:
    """The same with those nodes alone whose backend serves the model. Raises FailedPrecondition
    where there is none."""
    model = problem.costs.model
    nodes = tuple(node for node in problem.nodes if model.served_by(node.kind.backend))
    if not nodes:
        names = " and ".join(sorted(model.backends))
        raise FailedPrecondition(
            f"no node has a backend that serves {model.name or 'the model'}: {names} would",
            field="nodes",
        )
    if len(nodes) == len(problem.nodes):
        return problem
    return replace(problem, nodes=nodes, pipeline_count=min(problem.pipeline_count, len(nodes)))


def told_of_backends(problem: Problem) -> tuple[str, ...]:
    """What backends forbid, for people; nothing where all nodes have one that serves the model."""
    model, groups = problem.costs.model, by_backend(problem.nodes)
    able = [name for name in groups if model.served_by(name)]
    told = [
        f"left out: {_nodes(len(nodes))} of {name}, which cannot serve the model"
        for name, nodes in groups.items()
        if name not in able
    ]
    if len(able) > 1:
        counts = ", ".join(f"{_nodes(len(groups[name]))} of {name or 'no name'}" for name in able)
        told.append(f"a pipeline has one backend, for rows do not pass between two: {counts}")
    return tuple(told)


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def nothing_found(problem: Problem, budget: SearchBudget) -> ShuntError:
    """Why a search has no plan to show."""
    if budget.expired():
        return out_of_time()
    return nothing_fits(problem)


def nothing_fits(problem: Problem) -> FailedPrecondition:
    """Says how much memory is missing for one pipeline of all the nodes, or of all that have one
    backend."""
    costs = problem.costs

    def usable(nodes: Sequence[CandidateNode]) -> float:
        return sum(memory_usable(costs, node) for node in nodes)

    nodes = max(by_backend(problem.nodes).values(), key=usable)
    have = usable(nodes)
    model, need = costs.model, memory_needed(costs)
    sequence = need - model.total_bytes
    kinds = sorted({node.kind.type_name for node in nodes})
    short = (
        f"{(need - have) / GIB:.1f} GiB short"
        if need > have
        else "the layers do not divide over the devices"
    )
    return FailedPrecondition(
        f"{model.name or 'the model'} does not fit: {short}; weights {model.total_bytes / GIB:.1f} "
        f"GiB and {sequence / GIB:.2f} GiB KV cache of one sequence, usable "
        f"{max(0.0, have) / GIB:.1f} GiB on {len(nodes)} nodes ({', '.join(kinds)[:120]})",
        field="nodes",
    )


def memory_needed(costs: Costs) -> float:
    """Bytes of one pipeline's weights, and of the KV cache of one sequence."""
    model = costs.model
    sequence = model.layers * model.kv_bytes_per_token_layer * costs.workload.total_tokens
    return model.total_bytes + sequence


def memory_usable(costs: Costs, node: CandidateNode) -> float:
    """Bytes of a node that can hold these, at its best TP degree."""
    degrees = costs.degrees(node.kind)
    return max((max(0.0, costs.of(node.kind, n).budget_bytes) * n for n in degrees), default=0.0)
