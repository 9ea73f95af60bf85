"""The next plan: what was lost is repaired at once, the rest only where it pays for its move.

Pipelines whose nodes are all there stay. Their lost neighbours' nodes, with those that came back or
are on offer, are planned anew by themselves; with `improve` the whole cluster is too, and each
pipeline is asked whether it pays. A change is made when what it is worth over the horizon under the
objective, weights that load and tokens that replay included, beats staying by the hysteresis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.estimator import check_layers, check_pipeline, estimate_pipeline
from services.placement.replan.change import Change
from services.placement.replan.moves import (
    GenerationMove,
    NodeMove,
    ResidentStage,
    generation_move,
    node_moves,
    remap,
)
from services.placement.replan.options import ALL, STAY, forbidden, options_for
from services.placement.replan.parts import best_nodes
from services.placement.replan.worth import Outlook, gain, node_count, outlook, rate_of
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import (
    ObjectiveKind,
    Planner,
    Problem,
    of_the_model,
    told_of_backends,
)
from services.placement.search.score import violation
from services.placement.search.telling import figures


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
    late: str = ""
    """Which latency target it misses by how much; empty where it keeps all."""


def replan(problem: Problem, change: Change, search: Planner, budget: SearchBudget) -> NextPlan:
    """The next plan and its moves; FailedPrecondition when nothing fits any more."""
    told, problem = told_of_backends(problem), of_the_model(problem)
    found = _replanned(problem, change, search, budget)
    stays_late = (f"it is late: {found.late}",) if found.late and not found.change else ()
    return replace(found, reasons=(*found.reasons, *stays_late, *told))


def _replanned(problem: Problem, change: Change, search: Planner, budget: SearchBudget) -> NextPlan:
    for pipeline in change.running:  # of which those with a lost node are looked at no further
        check_layers(problem.costs, pipeline)
    left = left_of(problem, change)
    plans = [
        assess(problem, change, left, option, name)
        for name, option in options_for(problem, change, left, search, budget)
    ]
    affordable = [
        plan
        for plan in plans
        if change.phases_only or not forbidden(problem, change, plan.pipelines, left)
    ]
    if not affordable:
        most = best_nodes(problem, problem.nodes, change.nodes_max, used=frozenset())
        found = search(replace(problem, nodes=most), budget).pipelines
        return assess(problem, change, left, found, ALL)
    ranked = sorted(affordable, key=lambda plan: _rank(problem, change, plan), reverse=True)
    best = ranked[0]
    stay = next((plan for plan in affordable if plan.name == STAY), None)
    if stay is not None:
        best = _chosen(problem, change, ranked, stay)
    others = [plan for plan in ranked if plan.name != best.name]
    return replace(
        best,
        alternatives=(
            *(Rejected(plan.name, _lacks(problem, change, plan, best)) for plan in others),
            *(
                Rejected(plan.name, forbidden(problem, change, plan.pipelines, left))
                for plan in plans
                if plan not in affordable
            ),
        ),
    )


def left_of(problem: Problem, change: Change) -> tuple[PlacedPipeline, ...]:
    """Running pipelines whose nodes are all there, and hold them still."""
    present = {node.node_id for node in problem.nodes}
    return tuple(p for p in change.running if present.issuperset(p.node_ids) and _fits(problem, p))


def short_of(change: Change, pipelines: Sequence[PlacedPipeline]) -> int:
    """Nodes that a plan lacks of the least."""
    return max(0, change.nodes_min - node_count(pipelines))


def _chosen(
    problem: Problem, change: Change, ranked: Sequence[NextPlan], stay: NextPlan
) -> NextPlan:
    """Of plans, the best first, the first where it is worth its move; else what is left stays."""
    kind, best = problem.objective.kind, ranked[0]
    if short_of(change, best.pipelines) < short_of(change, stay.pipelines):
        more = gain(kind, best.outlook, stay.outlook)
        return replace(best, gain=more, reasons=(*best.reasons, _grown(change, stay, best)))
    if not _meets(problem, stay) and _meets(problem, best):
        return replace(best, gain=gain(kind, best.outlook, stay.outlook))
    if not _meets(problem, best):  # what arrives is more than can be had, or later than asked for
        more = gain(ObjectiveKind.THROUGHPUT, best.outlook, stay.outlook)
        if more > change.hysteresis:
            return replace(best, gain=more)
        # Of the most that any answers, or what is given up step by step is taken again at once.
        enough = best.outlook.requests / (1 + change.hysteresis)
        best = max(
            (plan for plan in ranked if plan.outlook.requests >= enough),
            key=lambda plan: plan.outlook.worth(kind),
        )
    if best is stay:
        return stay
    more = gain(kind, best.outlook, stay.outlook)
    if more <= change.hysteresis:
        return replace(stay, reasons=("no change gains enough over the horizon",))
    return replace(best, gain=more)


def _rank(problem: Problem, change: Change, plan: NextPlan) -> tuple[int, bool, float, float]:
    """Of those that do not carry what arrives, or are late, the one that answers more comes first:
    a dollar less is worth nothing there."""
    meets, worth = _meets(problem, plan), plan.outlook.worth(problem.objective.kind)
    answered = 0.0 if meets else plan.outlook.requests
    return -short_of(change, plan.pipelines), meets, answered, worth


def _grown(change: Change, stay: NextPlan, plan: NextPlan) -> str:
    now, then = node_count(stay.pipelines), node_count(plan.pipelines)
    return f"{then} nodes where there were {now}, for {change.nodes_min} are the least"


def _meets(problem: Problem, plan: NextPlan) -> bool:
    """Its latency targets, and what arrives where cost counts."""
    return not _misses(problem, plan)


def _misses(problem: Problem, plan: NextPlan) -> str:
    if plan.late:
        return plan.late
    arriving = problem.costs.workload.arrival_rate_rps
    if arriving and problem.objective.kind is ObjectiveKind.THROUGHPUT_PER_COST:
        rate = rate_of(problem, plan.pipelines).throughput_rps
        if rate < arriving:
            return f"carries {rate:.3g} of {arriving:.3g} requests/s"
    return ""


def _lacks(problem: Problem, change: Change, plan: NextPlan, chosen: NextPlan) -> str:
    if short_of(change, plan.pipelines) > short_of(change, chosen.pipelines):
        return f"{node_count(plan.pipelines)} nodes are less than {change.nodes_min}"
    missed = _misses(problem, plan)
    if missed and not _misses(problem, chosen):
        return missed
    less = -gain(problem.objective.kind, plan.outlook, chosen.outlook)
    fewer = -gain(ObjectiveKind.THROUGHPUT, plan.outlook, chosen.outlook)
    if missed and less < 0 < fewer:
        return f"answers {fewer:.1%} fewer requests over the horizon"
    if less < 0:
        return f"{-less:.1%} better over the horizon, less than a change must gain"
    return (
        f"{less:.1%} worse over the horizon: {figures(problem, plan.pipelines)} against "
        f"{figures(problem, chosen.pipelines)}, {plan.time_to_serve_s:.1f} s to serve"
    )


def _fits(problem: Problem, pipeline: PlacedPipeline) -> bool:
    check_pipeline(problem.costs, pipeline)
    try:
        estimate_pipeline(problem.costs, pipeline)
    except FailedPrecondition:
        return False
    return True


def held_by(problem: Problem, change: Change) -> dict[str, list[ResidentStage]]:
    """What nodes hold, those that serve included."""
    present = {node.node_id for node in problem.nodes}
    held = {node_id: list(layers) for node_id, layers in change.resident.items()}
    for pipeline in change.running:
        for stage in pipeline.stages:
            if stage.node.node_id in present:
                one = ResidentStage(stage.start, stage.end, stage.tp)
                held.setdefault(stage.node.node_id, []).append(one)
    return held


def assess(
    problem: Problem,
    change: Change,
    left: Sequence[PlacedPipeline],
    wanted: Sequence[PlacedPipeline],
    name: str,
) -> NextPlan:
    """The moves from what is left to what is wanted, and what they gain and cost; new pipelines
    take the problem's nodes."""
    costs, held = problem.costs, held_by(problem, change)
    phases = {p.stages: p.phase for p in left}
    kept = [p for p in wanted if p.stages in phases]
    fresh = [p for p in wanted if p.stages not in phases]
    staying = {node_id for p in kept for node_id in p.node_ids}
    free = [node for node in problem.nodes if node.node_id not in staying]
    fresh = list(remap(costs.model, fresh, free, held))
    moved_back = [p for p in fresh if p.stages in phases]
    kept, fresh = [*kept, *moved_back], [p for p in fresh if p.stages not in phases]
    flipped = [p for p in kept if p.phase is not phases[p.stages]]
    pipelines = (*kept, *fresh)
    moves = node_moves(costs.model, pipelines, held, change.load_bytes_per_s)
    ready_in_s = change.ready_in_s
    load_s = max(
        (move.load_s + ready_in_s.get(move.stage.node.node_id, 0.0) for move in moves), default=0.0
    )
    handovers = _handovers(problem, change, pipelines, kept)
    serve_s = load_s + max((one.handover_s for one in handovers), default=0.0)
    staying_stages = {p.stages for p in kept}
    ended = [p for p in left if p.stages not in staying_stages]
    after, before = (rate_of(problem, some).throughput_rps for some in (pipelines, left))
    gained = (after - before) * change.horizon_s
    new_rate = sum(estimate_pipeline(costs, p).throughput_rps for p in fresh)
    lost = new_rate * min(serve_s, change.horizon_s)
    other = f", {len(flipped)} in another phase" if flipped else ""
    reasons = (
        f"{len(kept)} pipelines stay{other}, {len(fresh)} are new, {len(ended)} end",
        f"{sum(m.load_bytes for m in moves) / 1e9:.2f} GB to load, {load_s:.1f} s",
    )
    return NextPlan(
        pipelines,
        tuple(left),
        bool(fresh or ended or flipped),
        tuple(moves),
        tuple(handovers),
        serve_s,
        gained,
        lost,
        reasons,
        outlook(problem, kept, fresh, ended, serve_s, change.horizon_s),
        name,
        late=violation(problem, pipelines)[0],
    )


def _handovers(
    problem: Problem,
    change: Change,
    pipelines: Sequence[PlacedPipeline],
    kept: Sequence[PlacedPipeline],
) -> list[GenerationMove]:
    """Each running pipeline that ends hands its generations to the nearest new one."""
    stays = {p.stages for p in kept}
    moves = []
    for index, (running, count) in enumerate(zip(change.running, change.generations, strict=False)):
        if not count or running.stages in stays or not pipelines:
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
