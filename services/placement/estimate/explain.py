"""Where a pipeline's time goes, what binds each stage, and what a change of one stage would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common.errors import ShuntError
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, PlacedStage
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import (
    Bottleneck,
    PipelineEstimate,
    capacities,
    dominant,
    estimate_pipeline,
    stage_costs,
    stage_operations,
    stage_times,
)


@dataclass(frozen=True)
class OperationTime:
    """One operation, all layers of the stage together, for one microbatch."""

    name: str
    prefill_s: float
    decode_s: float
    prefill_bound: Bottleneck
    decode_bound: Bottleneck


@dataclass(frozen=True)
class Alternative:
    """A change of the stage; throughput 0 when it does not fit."""

    change: str
    throughput_rps: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class StageExplanation:
    """One stage opened."""

    operations: tuple[OperationTime, ...]
    bound_by: Bottleneck
    prefill_bottleneck: bool
    decode_bottleneck: bool
    memory_bottleneck: bool
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class PipelineExplanation:
    """All stages, with the estimate they explain."""

    stages: tuple[StageExplanation, ...]
    estimate: PipelineEstimate


def explain_pipeline(costs: Costs, pipeline: PlacedPipeline) -> PipelineExplanation:
    estimate = estimate_pipeline(costs, pipeline)
    parts = stage_costs(costs, pipeline.stages)
    layers = [stage.layers for stage in pipeline.stages]
    rooms = capacities(parts, layers, pipeline.phase)
    batch = min(rooms)
    b = batch / min(len(parts), batch)
    times = stage_times(parts, layers, b)
    stages = []
    for i, one in enumerate(estimate.stages):
        prefill = stage_operations(parts, layers, i, b, True)
        decode = stage_operations(parts, layers, i, b, False)
        operations = tuple(
            OperationTime(p.name, float(p.time_s), float(d.time_s), dominant([p]), dominant([d]))
            for p, d in zip(prefill, decode, strict=True)
        )
        stages.append(
            StageExplanation(
                operations=operations,
                bound_by=one.bound_by,
                prefill_bottleneck=times.prefill_s[i] == max(times.prefill_s),
                decode_bottleneck=times.decode_s[i] == max(times.decode_s),
                memory_bottleneck=rooms[i] == batch < parts[i].max_sequences,
                alternatives=tuple(_alternatives(costs, pipeline, i, estimate)),
            )
        )
    return PipelineExplanation(tuple(stages), estimate)


def _alternatives(
    costs: Costs, pipeline: PlacedPipeline, index: int, estimate: PipelineEstimate
) -> list[Alternative]:
    """One layer more or fewer (traded with the slowest or fastest other stage), more GPUs."""
    out = costs.workload.output_tokens
    load = [one.prefill_s + out * one.decode_s for one in estimate.stages]
    others = [i for i in range(len(load)) if i != index]
    found = []
    if others:
        slowest = max(others, key=lambda i: load[i])
        fastest = min(others, key=lambda i: load[i])
        more, fewer = _traded(pipeline, slowest, index), _traded(pipeline, index, fastest)
        found.append(_try(costs, "one layer more", more, index))
        found.append(_try(costs, "one layer fewer", fewer, index))
    stage = pipeline.stages[index]
    degree = next(
        (n for n in range(stage.tp + 1, 2 * stage.tp + 1) if costs.model.allows_tp(n)), None
    )
    if degree is not None:
        kind = stage.node.kind
        bigger = replace(kind, gpu_count=max(degree, kind.gpu_count))
        wider = PlacedStage(
            CandidateNode(stage.node.node_id, bigger), stage.start, stage.end, degree
        )
        stages = (*pipeline.stages[:index], wider, *pipeline.stages[index + 1 :])
        plural = "one GPU" if degree == stage.tp + 1 else f"{degree - stage.tp} GPUs"
        name = f"{plural} more (TP {degree})"
        found.append(_try(costs, name, PlacedPipeline(stages, pipeline.phase), index))
    return found


def _traded(pipeline: PlacedPipeline, giver: int, taker: int) -> PlacedPipeline | None:
    counts = [stage.layers for stage in pipeline.stages]
    counts[giver] -= 1
    counts[taker] += 1
    if counts[giver] < 1:
        return None
    stages, start = [], 0
    for stage, count in zip(pipeline.stages, counts, strict=True):
        stages.append(PlacedStage(stage.node, start, start + count, stage.tp))
        start += count
    return PlacedPipeline(tuple(stages), pipeline.phase)


def _try(costs: Costs, name: str, pipeline: PlacedPipeline | None, index: int) -> Alternative:
    if pipeline is None:
        return Alternative(name, 0.0, 0.0, 0.0)
    try:
        estimate = estimate_pipeline(costs, pipeline)
    except ShuntError:
        return Alternative(name, 0.0, 0.0, 0.0)
    one = estimate.stages[index]
    return Alternative(name, estimate.throughput_rps, one.prefill_s, one.decode_s)


def explanation_data(explained: PipelineExplanation) -> list[dict[str, Any]]:
    """Plain data, one entry a stage."""
    return [_stage_data(stage) for stage in explained.stages]


def _stage_data(stage: StageExplanation) -> dict[str, Any]:
    slow: Sequence[tuple[str, bool]] = (
        ("prefill", stage.prefill_bottleneck),
        ("decode", stage.decode_bottleneck),
        ("memory", stage.memory_bottleneck),
    )
    return {
        "bound_by": stage.bound_by.value,
        "bottleneck_of": [name for name, is_it in slow if is_it],
        "operations": [
            {
                "name": op.name,
                "prefill_s": op.prefill_s,
                "decode_s": op.decode_s,
                "prefill_bound_by": op.prefill_bound.value,
                "decode_bound_by": op.decode_bound.value,
            }
            for op in stage.operations
        ],
        "alternatives": [
            {
                "change": one.change,
                "throughput_rps": one.throughput_rps,
                "prefill_s": one.prefill_s,
                "decode_s": one.decode_s,
            }
            for one in stage.alternatives
        ],
    }
