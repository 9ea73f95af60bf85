"""The next plan: what was lost is repaired at once, the rest only where it pays for its move.

Pipelines whose nodes are all there stay. Their lost neighbours' nodes, with those that came back or
are on offer, are planned anew by themselves; with `improve` the whole cluster is too, and each
pipeline is asked whether it pays. A change is made when what it is worth over the horizon under the
objective, weights that load and tokens that replay included, beats staying by the hysteresis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.estimate.estimator import check_layers, check_pipeline, estimate_pipeline
from services.placement.replan.moves import (
    LOAD_BYTES_PER_S,
    GenerationMove,
    NodeMove,
    ResidentStage,
    generation_move,
    node_moves,
    remap,
)
from services.placement.replan.worth import (
    Outlook,
    cost_per_hour,
    gain,
    outlook,
    rate_of,
    within_budget,
)
from services.placement.search.budget import SearchBudget
from services.placement.search.planners.proportional import power
from services.placement.search.problem import ObjectiveKind, Planner, Problem
from services.placement.search.score import violation
from services.placement.search.telling import figures

HYSTERESIS = 0.01
MOST_PARTS = 64
"""Pipelines that are each asked whether the plan is better without them."""


@dataclass(frozen=True)
class Change:
    """The circumstances of a change."""

    running: tuple[PlacedPipeline, ...]
    resident: Mapping[str, tuple[ResidentStage, ...]]
    horizon_s: float = 600.0
    notice_s: float = 0.0
    load_bytes_per_s: float = LOAD_BYTES_PER_S
    generations: tuple[int, ...] = ()
    tokens_per_generation: int = 0
    improve: bool = False
    ready_in_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds until a node that is only on offer can begin to load."""
    hysteresis: float = HYSTERESIS
    """The share of its worth by which a change must beat staying."""
    nodes_min: int = 0
    """Least nodes of a plan, where there are so many."""
    nodes_max: int = 0
    """Most nodes of a plan; 0 does not bind."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("horizon_s", 1.0, 1e8),
            ("notice_s", 0.0, 1e6),
            ("load_bytes_per_s", 1e3, 1e15),
            ("hysteresis", 0.0, 10.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidArgument(f"{name} must be from {low:g} to {high:g}", field=name)
        if 0 < self.nodes_max < self.nodes_min:
            raise InvalidArgument("nodes_max is less than nodes_min", field="nodes_max")
        if len(self.generations) > len(self.running):
            raise InvalidArgument("more entries than running pipelines", field="generations")


@dataclass(frozen=True)
class Rejected:
    """A plan that was looked at, and what it lacks."""

    plan: str
    lacks: str


@dataclass(frozen=True)
class NextPlan:
    """The plan from now on; `change` is False when what is left of the old one stays."""

    pipelines: tuple[PlacedPipeline, ...]
    left: tuple[PlacedPipeline, ...]
    change: bool
    node_moves: tuple[NodeMove, ...]
    generation_moves: tuple[GenerationMove, ...]
    time_to_serve_s: float
    gained_requests: float
    lost_requests: float
    reasons: tuple[str, ...]
    outlook: Outlook
    name: str = ""
    gain: float = 0.0
    """Over staying, as a share of what staying is worth."""
    alternatives: tuple[Rejected, ...] = ()
    """The others that were looked at, the best first."""


def replan(problem: Problem, change: Change, search: Planner, budget: SearchBudget) -> NextPlan:
    """The next plan and its moves; FailedPrecondition when nothing fits any more."""
    for pipeline in change.running:  # of which those with a lost node are looked at no further
        check_layers(problem.costs, pipeline)
    present = {node.node_id for node in problem.nodes}
    left = tuple(p for p in change.running if present.issuperset(p.node_ids) and _fits(problem, p))
    held = _held(change, present)
    plans = [
        _assess(problem, change, left, option, held, name)
        for name, option in _options(problem, change, left, search, budget)
    ]
    affordable = [plan for plan in plans if not _forbidden(problem, change, plan)]
    if not affordable:
        most = _best(problem, problem.nodes, change.nodes_max, used=frozenset())
        found = search(replace(problem, nodes=most), budget).pipelines
        return _assess(problem, change, left, found, held, _ALL)
    kind = problem.objective.kind
    ranked = sorted(affordable, key=lambda plan: _rank(problem, plan), reverse=True)
    best = ranked[0]
    stay = next((plan for plan in affordable if plan.name == _STAY), None)
    if stay is not None and best is not stay:
        more = gain(kind, best.outlook, stay.outlook)
        if not _meets(problem, stay) and _meets(problem, best):
            best = replace(best, gain=more)
        elif more <= change.hysteresis:
            reason = "no change gains enough over the horizon"
            best = replace(stay, reasons=(reason,))
        else:
            best = replace(best, gain=more)
    others = [plan for plan in ranked if plan.name != best.name]
    dear = [plan for plan in plans if plan not in affordable]
    return replace(
        best,
        alternatives=(
            *(Rejected(plan.name, _lacks(problem, plan, best)) for plan in others),
            *(Rejected(plan.name, _forbidden(problem, change, plan)) for plan in dear),
        ),
    )


_STAY = "what is left of the running plan"
_ALL = "a plan of all nodes"


def _options(
    problem: Problem,
    change: Change,
    left: tuple[PlacedPipeline, ...],
    search: Planner,
    budget: SearchBudget,
) -> list[tuple[str, tuple[PlacedPipeline, ...]]]:
    """Plans by name, none of them empty."""
    options = [(_STAY, left)]
    used = frozenset(node_id for pipeline in left for node_id in pipeline.node_ids)
    free = tuple(node for node in problem.nodes if node.node_id not in used)
    if change.nodes_max:
        room = max(0, change.nodes_max - len(used))
        free = _best(problem, free, room, used) if room else ()
    more = _what_is_lacking(problem, left)
    if free and more is not None:
        added = _planned(more, free, search, budget)
        options.append(("it and pipelines of the free nodes", (*left, *added) if added else ()))
    if change.improve or not _keeps(problem, change, left):
        options += _without_each(problem, change, left)
        best = _best(problem, problem.nodes, change.nodes_max, used)
        options.append((_ALL, _planned(problem, best, search, budget)))
    return [(name, option) for name, option in options if option]


def _what_is_lacking(problem: Problem, left: Sequence[PlacedPipeline]) -> Problem | None:
    """The problem of what the left pipelines leave over: of the budget, and of the requests that
    arrive where cost counts. None when nothing is lacking."""
    objective, workload = problem.objective, problem.costs.workload
    if left and objective.budget_per_hour:
        rest = objective.budget_per_hour - cost_per_hour(left)
        if rest <= 0:
            return None
        problem = replace(problem, objective=replace(objective, budget_per_hour=rest))
    arriving = workload.arrival_rate_rps
    if left and arriving and objective.kind is not ObjectiveKind.THROUGHPUT:
        lacking = arriving - rate_of(problem, left).throughput_rps
        if lacking <= 0:
            return None
        problem = replace(problem, costs=problem.costs.at_rate(lacking))
    return problem


def _best(
    problem: Problem, nodes: Sequence[CandidateNode], most: int, used: frozenset[str]
) -> tuple[CandidateNode, ...]:
    """At most so many of the nodes (0: all): those that do most, or most for their price where
    cost counts; of equal ones those in use first."""
    if not most or len(nodes) <= most:
        return tuple(nodes)
    minds_cost = problem.objective.kind is not ObjectiveKind.THROUGHPUT

    def worth(node: CandidateNode) -> tuple[float, bool]:
        does = power(problem, node.kind)
        price = node.kind.price_per_hour
        return (does / price if minds_cost and price > 0 else does), node.node_id in used

    return tuple(sorted(nodes, key=worth, reverse=True)[:most])


def _nodes_of(pipelines: Sequence[PlacedPipeline]) -> int:
    return sum(len(pipeline.stages) for pipeline in pipelines)


def _keeps(problem: Problem, change: Change, pipelines: Sequence[PlacedPipeline]) -> bool:
    """It keeps to the budget and to the most nodes."""
    count = _nodes_of(pipelines)
    return within_budget(problem, pipelines) and (not change.nodes_max or count <= change.nodes_max)


def _forbidden(problem: Problem, change: Change, plan: NextPlan) -> str:
    """Why a plan may not be; empty when it may. Staying with less than the least is none: less
    cannot be what is left when nodes were lost."""
    if not within_budget(problem, plan.pipelines):
        return _too_dear(problem, plan)
    count = _nodes_of(plan.pipelines)
    if change.nodes_max and count > change.nodes_max:
        return f"{count} nodes are more than {change.nodes_max}"
    fewest = min(change.nodes_min, _nodes_of(plan.left))
    if count < fewest:
        return f"{count} nodes are less than {fewest}"
    return ""


def _without_each(
    problem: Problem, change: Change, left: tuple[PlacedPipeline, ...]
) -> list[tuple[str, tuple[PlacedPipeline, ...]]]:
    """What is left without one of its pipelines, and without as many as the budget and the most
    nodes demand."""
    if cost_per_hour(left) <= 0 and _keeps(problem, change, left):
        return []
    shares = [rate_of(problem, (p,)).throughput_rps / max(p.cost_per_hour, 1e-12) for p in left]
    worst_first = sorted(range(len(left)), key=shares.__getitem__)
    options = []
    for index in worst_first[:MOST_PARTS]:
        rest = left[:index] + left[index + 1 :]
        options.append((f"it without pipeline {index + 1}", rest))
    rest = left
    for index in worst_first:
        if _keeps(problem, change, rest):
            break
        rest = tuple(p for p in rest if p is not left[index])
    if len(rest) < len(left) - 1:
        options.append(("what of it the limits allow", rest))
    return options


def _rank(problem: Problem, plan: NextPlan) -> tuple[bool, float]:
    return _meets(problem, plan), plan.outlook.worth(problem.objective.kind)


def _meets(problem: Problem, plan: NextPlan) -> bool:
    """Its latency targets, and what arrives where cost counts."""
    return not _misses(problem, plan)


def _misses(problem: Problem, plan: NextPlan) -> str:
    late, _ = violation(problem, plan.pipelines)
    if late:
        return late
    arriving = problem.costs.workload.arrival_rate_rps
    if arriving and problem.objective.kind is ObjectiveKind.THROUGHPUT_PER_COST:
        rate = rate_of(problem, plan.pipelines).throughput_rps
        if rate < arriving:
            return f"carries {rate:.3g} of {arriving:.3g} requests/s"
    return ""


def _lacks(problem: Problem, plan: NextPlan, chosen: NextPlan) -> str:
    missed = _misses(problem, plan)
    if missed and not _misses(problem, chosen):
        return missed
    less = -gain(problem.objective.kind, plan.outlook, chosen.outlook)
    if less < 0:
        return f"{-less:.1%} better over the horizon, less than a change must gain"
    return (
        f"{less:.1%} worse over the horizon: {figures(problem, plan.pipelines)} against "
        f"{figures(problem, chosen.pipelines)}, {plan.time_to_serve_s:.1f} s to serve"
    )


def _too_dear(problem: Problem, plan: NextPlan) -> str:
    cost = cost_per_hour(plan.pipelines)
    return f"{cost:.3f} $/h is above the budget of {problem.objective.budget_per_hour:.3f}"


def _fits(problem: Problem, pipeline: PlacedPipeline) -> bool:
    check_pipeline(problem.costs, pipeline)
    try:
        estimate_pipeline(problem.costs, pipeline)
    except FailedPrecondition:
        return False
    return True


def _held(change: Change, present: set[str]) -> dict[str, list[ResidentStage]]:
    held = {node_id: list(layers) for node_id, layers in change.resident.items()}
    for pipeline in change.running:
        for stage in pipeline.stages:
            if stage.node.node_id in present:
                one = ResidentStage(stage.start, stage.end, stage.tp)
                held.setdefault(stage.node.node_id, []).append(one)
    return held


def _planned(
    problem: Problem, nodes: Sequence[CandidateNode], search: Planner, budget: SearchBudget
) -> tuple[PlacedPipeline, ...]:
    """A plan of some of the nodes; none when they hold no pipeline, or time is out."""
    count = 0 if len(nodes) < len(problem.nodes) else problem.pipeline_count
    part = replace(problem, nodes=tuple(nodes), pipeline_count=count)
    try:
        return search(part, budget).pipelines
    except (FailedPrecondition, DeadlineExceeded):
        return ()


def _assess(
    problem: Problem,
    change: Change,
    left: Sequence[PlacedPipeline],
    wanted: Sequence[PlacedPipeline],
    held: Mapping[str, Sequence[ResidentStage]],
    name: str,
) -> NextPlan:
    """The moves from what is left to what is wanted, and what they gain and cost."""
    costs = problem.costs
    kept = [p for p in wanted if p in left]
    fresh = [p for p in wanted if p not in left]
    staying = {node_id for p in kept for node_id in p.node_ids}
    free = [node for node in problem.nodes if node.node_id not in staying]
    fresh = list(remap(costs.model, fresh, free, held))
    moved_back = [p for p in fresh if p in left]
    kept, fresh = [*kept, *moved_back], [p for p in fresh if p not in left]
    pipelines = (*kept, *fresh)
    moves = node_moves(costs.model, pipelines, held, change.load_bytes_per_s)
    ready_in_s = change.ready_in_s
    load_s = max(
        (move.load_s + ready_in_s.get(move.stage.node.node_id, 0.0) for move in moves), default=0.0
    )
    handovers = _handovers(problem, change, pipelines, kept)
    serve_s = load_s + max((one.handover_s for one in handovers), default=0.0)
    ended = [p for p in left if p not in kept]
    new_rate = sum(estimate_pipeline(costs, p).throughput_rps for p in fresh)
    old_rate = sum(estimate_pipeline(costs, p).throughput_rps for p in ended)
    gained = (new_rate - old_rate) * change.horizon_s
    lost = new_rate * min(serve_s, change.horizon_s)
    reasons = (
        f"{len(kept)} pipelines stay, {len(fresh)} are new, {len(ended)} end",
        f"{sum(m.load_bytes for m in moves) / 1e9:.2f} GB to load, {load_s:.1f} s",
    )
    return NextPlan(
        pipelines,
        tuple(left),
        bool(fresh or ended),
        tuple(moves),
        tuple(handovers),
        serve_s,
        gained,
        lost,
        reasons,
        outlook(problem, kept, fresh, ended, serve_s, change.horizon_s),
        name,
    )


def _handovers(
    problem: Problem,
    change: Change,
    pipelines: Sequence[PlacedPipeline],
    kept: Sequence[PlacedPipeline],
) -> list[GenerationMove]:
    """Each running pipeline that ends hands its generations to the nearest new one."""
    moves = []
    for index, (running, count) in enumerate(zip(change.running, change.generations, strict=False)):
        if not count or running in kept or not pipelines:
            continue
        nodes = set(running.node_ids)
        target = max(pipelines, key=lambda p: len(nodes.intersection(p.node_ids)))
        moves.append(
            generation_move(
                problem.costs,
                index,
                running,
                target,
                count,
                change.tokens_per_generation,
                change.notice_s,
            )
        )
    return moves
