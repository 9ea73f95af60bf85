"""The next plan: what was lost is repaired at once, the rest only where it pays for its move.

Pipelines whose nodes are all there stay. Their lost neighbours' nodes, with those that came back,
are planned anew by themselves; with `improve` the whole cluster is too. A change is made when the
requests it gains over the horizon exceed those it costs while weights load and tokens replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.estimate.estimator import check_layers, check_pipeline, estimate_pipeline
from services.placement.replan.moves import (
    GenerationMove,
    NodeMove,
    ResidentStage,
    generation_move,
    node_moves,
    remap,
)
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Planner, Problem

HYSTERESIS = 0.01


@dataclass(frozen=True)
class Change:
    """The circumstances of a change."""

    running: tuple[PlacedPipeline, ...]
    resident: Mapping[str, tuple[ResidentStage, ...]]
    horizon_s: float = 600.0
    notice_s: float = 0.0
    load_bytes_per_s: float = 1e9
    generations: tuple[int, ...] = ()
    tokens_per_generation: int = 0
    improve: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("horizon_s", 1.0, 1e8),
            ("notice_s", 0.0, 1e6),
            ("load_bytes_per_s", 1e3, 1e15),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidArgument(f"{name} must be from {low:g} to {high:g}", field=name)
        if len(self.generations) > len(self.running):
            raise InvalidArgument("more entries than running pipelines", field="generations")


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


def replan(problem: Problem, change: Change, search: Planner, budget: SearchBudget) -> NextPlan:
    """The next plan and its moves; FailedPrecondition when nothing fits any more."""
    for pipeline in change.running:  # of which those with a lost node are looked at no further
        check_layers(problem.costs, pipeline)
    present = {node.node_id for node in problem.nodes}
    left = tuple(p for p in change.running if present.issuperset(p.node_ids) and _fits(problem, p))
    held = _held(change, present)
    options = [left]
    used = {node_id for pipeline in left for node_id in pipeline.node_ids}
    free = tuple(node for node in problem.nodes if node.node_id not in used)
    if free:
        options.append((*left, *_planned(problem, free, search, budget)))
    if change.improve and left:
        options.append(_planned(problem, problem.nodes, search, budget))
    plans = [_assess(problem, change, left, option, held) for option in options if option]
    if not plans:
        return _assess(problem, change, left, search(problem, budget).pipelines, held)
    stay = plans[0] if left else None
    best = max(plans, key=lambda plan: plan.gained_requests - plan.lost_requests)
    rate = sum(estimate_pipeline(problem.costs, p).throughput_rps for p in left)
    least = HYSTERESIS * rate * change.horizon_s
    if stay is not None and best.gained_requests - best.lost_requests <= least:
        return replace(stay, reasons=("no change gains enough over the horizon",))
    return best


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
    load_s = max((move.load_s for move in moves), default=0.0)
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
