"""Losses and gains in short form, and the next plan as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument
from services.placement.command.clusterfile import of_type
from services.placement.command.report import number, pipeline_data
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.replan.next_plan import NextPlan


def counts_of(text: str, field: str) -> list[tuple[str, int]]:
    """`type[:count],...`, the count 1 when it is missing."""
    found = []
    for part in text.split(",") if text else ():
        name, _, count = part.strip().partition(":")
        if not name or not (count or "1").isdecimal() or len(count) > 5:
            raise InvalidArgument(f"{part[:40]!r} is not type[:count]", field=field)
        found.append((name, int(count or "1")))
    return found


def change_cluster(
    catalogue: HardwareCatalogue,
    nodes: Sequence[CandidateNode],
    running: Sequence[PlacedPipeline],
    lose: str,
    gain: str,
) -> tuple[CandidateNode, ...]:
    """The nodes afterwards; nodes that serve are lost before idle ones."""
    serving = {node_id for pipeline in running for node_id in pipeline.node_ids}
    left = sorted(nodes, key=lambda node: node.node_id not in serving)
    for name, count in counts_of(lose, "lose"):
        doomed = [node for node in left if node.kind.type_name == name][:count]
        if len(doomed) < count:
            raise FailedPrecondition(f"there are only {len(doomed)} {name[:60]}", field="lose")
        left = [node for node in left if node not in doomed]
    for name, count in counts_of(gain, "gain"):
        kind = next(
            (node.kind for node in nodes if node.kind.type_name == name),
            None,
        ) or of_type(name, catalogue, "gain")
        left += [CandidateNode(f"{name}-new-{i}", kind) for i in range(count)]
    return tuple(left)


def moved_data(
    costs: Costs, running: Sequence[PlacedPipeline], found: NextPlan, solve_time_s: float
) -> dict[str, Any]:
    total, each = estimate_plan(costs, found.pipelines)
    before = sum(estimate_pipeline(costs, p).throughput_rps for p in running)
    return {
        "change": found.change,
        "throughput_before_rps": before,
        "throughput_rps": total.throughput_rps,
        "cost_per_hour": total.cost_per_hour,
        "pipelines": [pipeline_data(p, e) for p, e in zip(found.pipelines, each, strict=True)],
        "node_moves": [
            {
                "node": move.stage.node.node_id,
                "layers": [move.stage.start, move.stage.end],
                "load_bytes": move.load_bytes,
                "resident_bytes": move.resident_bytes,
                "load_s": move.load_s,
            }
            for move in found.node_moves
        ],
        "generation_moves": [
            {
                "running_pipeline": move.running_pipeline,
                "handover": move.handover.value,
                "kv_bytes": move.kv_bytes,
                "replay_tokens": move.replay_tokens,
                "handover_s": move.handover_s,
            }
            for move in found.generation_moves
        ],
        "time_to_serve_s": found.time_to_serve_s,
        "gained_requests": found.gained_requests,
        "lost_requests": found.lost_requests,
        "reasons": list(found.reasons),
        "gain": number(found.gain),
        "alternatives": [{"plan": o.plan, "lacks": o.lacks} for o in found.alternatives],
        "solve_time_s": solve_time_s,
    }
