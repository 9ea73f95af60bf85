"""Times, batch and cost of given pipelines: the one judge of every planner's plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.phases import PipelinePhase
from services.placement.estimate import queueing
from services.placement.estimate.cluster import (
    PlacedPipeline,
    PlacedStage,
    Workload,
)
from services.placement.estimate.costs import Costs, StageCost
from services.placement.estimate.roofline import Operation
from services.placement.estimate.step_times import StepTimes
from services.placement.search import transport

BLOCK_TOKENS = 16
GIB = 2**30


class Bottleneck(Enum):
    """What limits a stage or an operation."""

    COMPUTE = "compute"
    BANDWIDTH = "bandwidth"
    NETWORK = "network"
    MEMORY = "memory"


@dataclass(frozen=True)
class StageEstimate:
    """One microbatch on one stage, its hop among it."""

    prefill_s: float
    decode_s: float
    bound_by: Bottleneck
    weight_bytes_per_device: int
    kv_bytes_per_device: int


@dataclass(frozen=True)
class PipelineEstimate:
    """A pipeline at its largest batch, and at the arrival rate it was asked for."""

    kv_blocks: int
    max_batch: int
    batch_latency_s: float
    single_request_latency_s: float
    throughput_rps: float
    cost_per_hour: float
    load: queueing.Load
    throughput_tokens_per_s: float
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class PlanEstimate:
    """All pipelines; means over requests, shared in proportion to throughput."""

    throughput_rps: float
    cost_per_hour: float
    load: queueing.Load


@dataclass(frozen=True)
class StageTimes:
    """One microbatch of b sequences on each stage, in seconds."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]


def stage_costs(costs: Costs, stages: Sequence[PlacedStage]) -> list[StageCost]:
    return [costs.of(stage.node.kind, stage.tp) for stage in stages]


def stage_operations(
    parts: Sequence[StageCost], layers: Sequence[int], index: int, b: float, prefill: bool
) -> list[Operation]:
    """Everything one stage does for a microbatch: its layers together, its ends, its hop."""
    part = parts[index]
    one = (
        part.device.prefill(b, part.workload.input_tokens)
        if prefill
        else part.device.decode(b, part.context)
    )
    scale = part.prefill_scale if prefill else part.decode_scale
    operations = [_times(op, layers[index] * scale) for op in one]
    if part.step_overhead_s:
        operations.append(Operation("engine", 0.0, 0.0, 0.0, part.step_overhead_s))
    if index == 0:
        tokens = b * (part.workload.input_tokens if prefill else 1)
        operations.insert(0, part.device.embedding(tokens))
    if index == len(parts) - 1:
        operations.append(part.device.lm_head(b))
    else:
        hop = float(part.hop_s(b, prefill, parts[index + 1].network_bytes_per_s))
        operations.append(Operation("hop", 0.0, 0.0, hop, 0.0))
    return operations


def _times(op: Operation, layers: float) -> Operation:
    return Operation(
        op.name,
        op.compute_s * layers,
        op.traffic_s * layers,
        op.network_s * layers,
        op.launch_s * layers,
    )


def stage_times(parts: Sequence[StageCost], layers: Sequence[int], b: float) -> StageTimes:
    """Seconds of one microbatch on each stage, the hop to the next among them."""
    by_phase = [
        tuple(
            sum(float(op.time_s) for op in stage_operations(parts, layers, i, b, prefill))
            for i in range(len(parts))
        )
        for prefill in (True, False)
    ]
    return StageTimes(*by_phase)


def batch_latency_s(
    times: StageTimes, microbatches: int, output_tokens: int, phase: PipelinePhase
) -> float:
    """A batch from prompt to last token: the fill of the pipeline, or its slowest stage."""
    prefill = max(sum(times.prefill_s), microbatches * max(times.prefill_s))
    decode = max(sum(times.decode_s), microbatches * max(times.decode_s))
    if phase is PipelinePhase.PREFILL:
        return prefill
    return (prefill if phase is PipelinePhase.BOTH else 0.0) + output_tokens * decode


def served_rps(
    times: StepTimes, workload: Workload, batch: int, phase: PipelinePhase = PipelinePhase.BOTH
) -> float:
    """Requests a second of a batch that stays full: in each cycle every sequence gets a token, and
    for each that ends a prompt is read. Where prompts alone are read, as many rows of them a cycle
    as there may be."""
    if phase is PipelinePhase.PREFILL:
        rows = float(times.profile.token_budget * times.stages)
        prompts = rows / workload.input_tokens
        return prompts / times.cycle_s(0, 0.0, rows, prompts)
    prompts = batch / workload.output_tokens if phase is PipelinePhase.BOTH else 0.0
    context = workload.input_tokens + workload.output_tokens / 2
    rows = prompts * workload.input_tokens
    return batch / (workload.output_tokens * times.cycle_s(batch, context, rows, prompts))


def check_pipeline(costs: Costs, pipeline: PlacedPipeline) -> None:
    """Every layer once and in order, nodes once, TP possible; InvalidArgument says what is not."""
    if not pipeline.stages:
        raise InvalidArgument("a pipeline needs at least one stage", field="stages")
    check_nodes_once(pipeline)
    check_layers(costs, pipeline)
    for index, stage in enumerate(pipeline.stages):
        kind = stage.node.kind
        if not 1 <= stage.tp <= kind.gpu_count or not costs.model.allows_tp(stage.tp):
            raise InvalidArgument(
                f"stage {index}: TP {stage.tp} does not suit {kind.gpu_count} x {kind.gpu.name} "
                f"and {costs.model.heads} heads with {costs.model.kv_heads} KV heads",
                field="tp_degree",
            )


def check_nodes_once(pipeline: PlacedPipeline) -> None:
    """InvalidArgument where one has two stages."""
    if len(set(pipeline.node_ids)) != len(pipeline.stages):
        raise InvalidArgument("a node is used twice", field="stages")


def check_backends(costs: Costs, pipeline: PlacedPipeline) -> None:
    """One backend, which serves the model; FailedPrecondition says what is not so."""
    backends = pipeline.backends
    if len(backends) > 1:
        names = " and ".join(backends)
        raise FailedPrecondition(
            f"the stages compute with {names}: rows do not pass between them", field="stages"
        )
    if not costs.model.served_by(backends[0]):
        raise FailedPrecondition(
            f"{backends[0] or 'its backend'} cannot serve the model; "
            f"{' and '.join(sorted(costs.model.backends))} can",
            field="stages",
        )


def check_layers(costs: Costs, pipeline: PlacedPipeline) -> None:
    """Every layer once and in order; InvalidArgument says what is not."""
    expected = 0
    for index, stage in enumerate(pipeline.stages):
        if stage.start != expected or stage.end <= stage.start:
            raise InvalidArgument(
                f"stage {index} holds layers {stage.start} to {stage.end}, "
                f"but layer {expected} is next",
                field="layers",
            )
        expected = stage.end
    if expected != costs.model.layers:
        raise InvalidArgument(
            f"the stages hold {expected} layers, the model has {costs.model.layers}", field="layers"
        )


def capacities(
    parts: Sequence[StageCost], layers: Sequence[int], phase: PipelinePhase = PipelinePhase.BOTH
) -> list[int]:
    """Sequences each stage has room for."""
    last = len(parts) - 1
    return [
        part.capacity(n, i == 0, i == last, phase)
        for i, (part, n) in enumerate(zip(parts, layers, strict=True))
    ]


def estimate_pipeline(
    costs: Costs, pipeline: PlacedPipeline, arrival_rate_rps: float = 0.0
) -> PipelineEstimate:
    """The estimate, computed once for pipelines that are alike; FailedPrecondition names the stage
    that lacks memory, and how much, or the backends that cannot serve it together."""
    key = (pipeline.alike, arrival_rate_rps)
    if key in costs.estimates:
        check_nodes_once(pipeline)
    else:
        check_pipeline(costs, pipeline)
        check_backends(costs, pipeline)
        costs.estimates[key] = _estimated(costs, pipeline, arrival_rate_rps)
    found: PipelineEstimate = costs.estimates[key]
    return found


def _estimated(costs: Costs, pipeline: PlacedPipeline, arrival_rate_rps: float) -> PipelineEstimate:
    parts = stage_costs(costs, pipeline.stages)
    layers = [stage.layers for stage in pipeline.stages]
    rooms = capacities(parts, layers, pipeline.phase)
    _check_room(parts, layers, rooms, pipeline.phase)
    batch = min(rooms)
    microbatches = min(len(parts), batch)
    out, total = costs.workload.output_tokens, costs.workload.total_tokens
    times = stage_times(parts, layers, batch / microbatches)
    batch_s = batch_latency_s(times, microbatches, out, pipeline.phase)
    alone = stage_times(parts, layers, 1.0)
    throughput = batch / batch_s
    if costs.calibration.engine is not None:
        steps = StepTimes(parts, layers, costs.engine)
        throughput = served_rps(steps, costs.workload, batch, pipeline.phase)
    blocks = batch * total // BLOCK_TOKENS
    return PipelineEstimate(
        kv_blocks=blocks,
        max_batch=max(1, blocks * BLOCK_TOKENS // total),
        batch_latency_s=batch_s,
        single_request_latency_s=batch_latency_s(alone, 1, out, pipeline.phase),
        throughput_rps=throughput,
        cost_per_hour=pipeline.cost_per_hour,
        load=queueing.at_rate(
            lambda b: stage_times(parts, layers, b),
            batch,
            throughput,
            out,
            arrival_rate_rps,
            pipeline.phase,
            1 / transport.kv_rate(costs, pipeline),
        ),
        throughput_tokens_per_s=throughput * out,
        stages=tuple(
            _stage_estimate(parts, layers, i, batch, microbatches, rooms, times)
            for i in range(len(parts))
        ),
    )


def _check_room(
    parts: Sequence[StageCost], layers: Sequence[int], rooms: Sequence[int], phase: PipelinePhase
) -> None:
    last = len(parts) - 1
    for i, (part, n, room) in enumerate(zip(parts, layers, rooms, strict=True)):
        if room < 1:
            need = part.kv_bytes_per_sequence(n, phase) - part.free_bytes(n, i == 0, i == last)
            raise FailedPrecondition(
                f"{need / GIB:.1f} GiB short on stage {i}: {n} layers on a {part.kind.type_name} "
                f"at TP {part.tp} leave no room for one sequence of "
                f"{part.workload.total_tokens} tokens",
                field="layers",
            )


def dominant(operations: Sequence[Operation]) -> Bottleneck:
    """What takes most of the time: each operation counts for the resource that limits it."""
    spent = dict.fromkeys((Bottleneck.COMPUTE, Bottleneck.BANDWIDTH, Bottleneck.NETWORK), 0.0)
    for op in operations:
        slower = Bottleneck.COMPUTE if op.compute_s > op.traffic_s else Bottleneck.BANDWIDTH
        spent[slower] += float(op.time_s) - float(op.network_s)
        spent[Bottleneck.NETWORK] += float(op.network_s)
    return max(spent, key=lambda bound: spent[bound])


def _stage_estimate(
    parts: Sequence[StageCost],
    layers: Sequence[int],
    index: int,
    batch: int,
    microbatches: int,
    rooms: Sequence[int],
    times: StageTimes,
) -> StageEstimate:
    part, b, out = parts[index], batch / microbatches, parts[index].workload.output_tokens
    first, last = index == 0, index == len(parts) - 1
    prefill = stage_operations(parts, layers, index, b, True)
    decode = [_times(op, out) for op in stage_operations(parts, layers, index, b, False)]
    slowest = times.prefill_s[index] == max(times.prefill_s) or times.decode_s[index] == max(
        times.decode_s
    )
    fullest = rooms[index] == batch < part.max_sequences
    bound = Bottleneck.MEMORY if fullest and not slowest else dominant([*prefill, *decode])
    return StageEstimate(
        prefill_s=times.prefill_s[index],
        decode_s=times.decode_s[index],
        bound_by=bound,
        weight_bytes_per_device=math.ceil(part.weight_bytes(layers[index], first, last)),
        kv_bytes_per_device=max(0, math.floor(part.free_bytes(layers[index], first, last))),
    )


def estimate_plan(
    costs: Costs, pipelines: Sequence[PlacedPipeline]
) -> tuple[PlanEstimate, list[PipelineEstimate]]:
    """All pipelines at the workload's arrival rate, shared in proportion to throughput; between
    phases, to what the link has time for."""
    idle = [estimate_pipeline(costs, pipeline) for pipeline in pipelines]
    split = any(pipeline.phase is not PipelinePhase.BOTH for pipeline in pipelines)
    total = sum(e.throughput_rps for e in idle)
    if split:
        total = transport.carried_rps(costs, pipelines, [e.throughput_rps for e in idle])
    rate = costs.workload.arrival_rate_rps
    able = [
        e.throughput_rps
        if pipeline.phase is PipelinePhase.BOTH
        else min(e.throughput_rps, transport.kv_rate(costs, pipeline))
        for e, pipeline in zip(idle, pipelines, strict=True)
    ]
    shares = _shares(pipelines, able, total)
    each = (
        [
            estimate_pipeline(costs, pipeline, rate * share)
            for pipeline, share in zip(pipelines, shares, strict=True)
        ]
        if rate > 0
        else idle
    )
    load = queueing.mean([e.load for e in each], shares)
    return PlanEstimate(total, sum(e.cost_per_hour for e in each), load), each


def _shares(
    pipelines: Sequence[PlacedPipeline], rates: Sequence[float], total: float
) -> list[float]:
    """Share of all requests that pass each pipeline; split phases pass two."""
    sums = {
        phase: sum(r for r, p in zip(rates, pipelines, strict=True) if p.phase is phase)
        for phase in PipelinePhase
    }
    whole = sums[PipelinePhase.BOTH] / total if total > 0 else 0.0
    parts = dict.fromkeys(PipelinePhase, 1.0 - whole) | {PipelinePhase.BOTH: whole}
    return [
        parts[pipeline.phase] * rate / sums[pipeline.phase]
        for pipeline, rate in zip(pipelines, rates, strict=True)
    ]
