"""What a change of plan moves: weights to load by node, generations to hand over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, PlacedStage
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import stage_costs
from services.placement.estimate.model import ModelShape
from services.placement.replan.assignment import assign

SAFETY_S = 2.0
LOAD_BYTES_PER_S = 1e9
"""From weights at rest into a node, where nobody says otherwise."""


class Handover(Enum):
    """How generations live on."""

    REPLAY = "replay"
    TRANSFER = "transfer"


@dataclass(frozen=True)
class ResidentStage:
    """Layers [start, end) that a node holds at a TP degree."""

    start: int
    end: int
    tp: int


@dataclass(frozen=True)
class NodeMove:
    """What a node keeps and loads for its new stage."""

    stage: PlacedStage
    load_bytes: int
    resident_bytes: int
    load_s: float


@dataclass(frozen=True)
class GenerationMove:
    """What happens to the generations of a running pipeline that goes away."""

    running_pipeline: int
    handover: Handover
    kv_bytes: int
    replay_tokens: int
    handover_s: float


def stage_bytes(model: ModelShape, start: int, end: int) -> int:
    """Weights of a stage, all its ranks together."""
    vocab = int(start == 0) + int(end == model.layers)
    if model.tied and start == 0 and end == model.layers:
        vocab = 1
    return (end - start) * model.layer_bytes + vocab * model.vocab_bytes


def kept_bytes(
    model: ModelShape, held: Sequence[ResidentStage], start: int, end: int, tp: int
) -> int:
    """Weights of a stage that are in the right slices already."""
    layers, first, last = 0, False, False
    for one in held:
        if one.tp == tp:
            layers += max(0, min(end, one.end) - max(start, one.start))
            first |= start == 0 == one.start
            last |= end == model.layers == one.end
    vocab = int(first) + int(last)
    if model.tied and start == 0 and end == model.layers:
        vocab = min(vocab, 1)
    return min(layers, end - start) * model.layer_bytes + vocab * model.vocab_bytes


def remap(
    model: ModelShape,
    pipelines: Sequence[PlacedPipeline],
    nodes: Sequence[CandidateNode],
    held: Mapping[str, Sequence[ResidentStage]],
) -> tuple[PlacedPipeline, ...]:
    """The same pipelines with equal nodes exchanged so that the fewest bytes are loaded.

    `nodes` may be used; Kuhn-Munkres by class, slots against nodes.
    """
    slots: dict[object, list[tuple[int, int]]] = {}
    for p, pipeline in enumerate(pipelines):
        for s, stage in enumerate(pipeline.stages):
            slots.setdefault(stage.node.kind, []).append((p, s))
    chosen: dict[tuple[int, int], CandidateNode] = {}
    for kind, places in slots.items():
        free = [node for node in nodes if node.kind == kind]
        cost = np.empty((len(places), len(free)))
        for row, (p, s) in enumerate(places):
            stage = pipelines[p].stages[s]
            cost[row] = [
                -kept_bytes(model, held.get(n.node_id, ()), stage.start, stage.end, stage.tp)
                for n in free
            ]
        for place, column in zip(places, assign(cost), strict=True):
            chosen[place] = free[int(column)]
    return tuple(
        PlacedPipeline(
            tuple(
                PlacedStage(chosen[p, s], stage.start, stage.end, stage.tp)
                for s, stage in enumerate(pipeline.stages)
            ),
            pipeline.phase,
        )
        for p, pipeline in enumerate(pipelines)
    )


def node_moves(
    model: ModelShape,
    pipelines: Sequence[PlacedPipeline],
    held: Mapping[str, Sequence[ResidentStage]],
    load_bytes_per_s: float,
) -> list[NodeMove]:
    """One entry a stage, in order."""
    moves = []
    for pipeline in pipelines:
        for stage in pipeline.stages:
            whole = stage_bytes(model, stage.start, stage.end)
            kept = kept_bytes(
                model, held.get(stage.node.node_id, ()), stage.start, stage.end, stage.tp
            )
            moves.append(NodeMove(stage, whole - kept, kept, (whole - kept) / load_bytes_per_s))
    return moves


def generation_move(
    costs: Costs,
    index: int,
    running: PlacedPipeline,
    target: PlacedPipeline,
    generations: int,
    tokens: int,
    notice_s: float,
) -> GenerationMove:
    """Transfer of the KV cache where it is cheaper than replay and ends before the notice does.

    Only layers whose node or TP degree changes move. Replay computes every token anew: the
    target's slowest stage sets its pace (2 x parameters x tokens / FLOPs, as the roofline has it).
    """
    held = {
        (stage.node.node_id, stage.tp, layer)
        for stage in running.stages
        for layer in range(stage.start, stage.end)
    }
    moved = sum(
        (stage.node.node_id, stage.tp, layer) not in held
        for stage in target.stages
        for layer in range(stage.start, stage.end)
    )
    per_layer = costs.model.kv_bytes_per_token_layer * tokens * generations
    parts = stage_costs(costs, target.stages)
    slowest = max(
        float(part.prefill_layer_s(1.0)) * stage.layers
        for part, stage in zip(parts, target.stages, strict=True)
    )
    replay_s = slowest * generations * tokens / costs.workload.input_tokens
    sources = [part.network_bytes_per_s for part in stage_costs(costs, running.stages)]
    rate = min(*sources, *(part.network_bytes_per_s for part in parts))
    transfer_s = parts[0].hop_latency_s + moved * per_layer / rate
    if notice_s > 0 and transfer_s < replay_s and transfer_s + SAFETY_S <= notice_s:
        return GenerationMove(index, Handover.TRANSFER, moved * per_layer, 0, transfer_s)
    return GenerationMove(index, Handover.REPLAY, 0, generations * tokens, replay_s)
