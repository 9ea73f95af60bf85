"""Messages to values and back; a bad field is an InvalidArgument that names it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from shuntserve.common.v1 import common_pb2
from shuntserve.placement.v1 import placement_pb2 as pb

from services.common.errors import InvalidArgument
from services.common.phases import PipelinePhase
from services.placement.estimate.calibration import Calibration
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    Workload,
    described,
)
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import Bottleneck, PipelineEstimate, PlanEstimate
from services.placement.estimate.model import ModelShape, built_in, parse_config
from services.placement.search.problem import Objective, ObjectiveKind
from services.placement.search.registry import DEFAULT_PLANNER, planner
from services.placement.search.shares import Share

_CALIBRATIONS = {
    pb.CALIBRATION_UNSPECIFIED: "measured",
    pb.CALIBRATION_MEASURED: "measured",
    pb.CALIBRATION_NOMINAL: "nominal",
}
_OBJECTIVES = {
    pb.OBJECTIVE_KIND_UNSPECIFIED: ObjectiveKind.THROUGHPUT,
    pb.OBJECTIVE_KIND_THROUGHPUT: ObjectiveKind.THROUGHPUT,
    pb.OBJECTIVE_KIND_THROUGHPUT_PER_COST: ObjectiveKind.THROUGHPUT_PER_COST,
    pb.OBJECTIVE_KIND_GOODPUT_PER_COST: ObjectiveKind.GOODPUT_PER_COST,
}
_PHASES = {
    pb.PHASE_UNSPECIFIED: PipelinePhase.BOTH,
    pb.PHASE_PREFILL: PipelinePhase.PREFILL,
    pb.PHASE_DECODE: PipelinePhase.DECODE,
}
_PHASE_OF = {phase: number for number, phase in _PHASES.items()}
BOUND_OF = {
    Bottleneck.COMPUTE: pb.BOUND_COMPUTE,
    Bottleneck.BANDWIDTH: pb.BOUND_BANDWIDTH,
    Bottleneck.NETWORK: pb.BOUND_NETWORK,
    Bottleneck.MEMORY: pb.BOUND_MEMORY,
}


def model_from(message: pb.ModelSpec) -> ModelShape:
    return replace(_shape_from(message), backends=frozenset(message.backends))


def _shape_from(message: pb.ModelSpec) -> ModelShape:
    if message.config_json:
        return parse_config(message.config_json, message.name, message.part_bytes)
    if not message.name or "/" in message.name or len(message.name) > 128:
        raise InvalidArgument("model needs a built-in name or a config_json", field="model")
    return built_in(message.name)


def workload_from(message: pb.Workload) -> Workload:
    default = Workload()
    return Workload(
        message.input_tokens or default.input_tokens,
        message.output_tokens or default.output_tokens,
        message.arrival_rate_rps,
    )


def objective_from(message: pb.Objective) -> Objective:
    if message.kind not in _OBJECTIVES:
        raise InvalidArgument("unknown objective kind", field="kind")
    return Objective(
        kind=_OBJECTIVES[message.kind],
        budget_per_hour=message.budget_per_hour,
        ttft_target_s=message.ttft_target_s,
        tpot_target_s=message.tpot_target_s,
        uniform_tp=message.uniform_tp,
        min_on_demand_share=message.min_on_demand_share,
        recovery_s=message.recovery_s or Objective().recovery_s,
        allow_phase_split=message.allow_phase_split,
    )


def calibration_from(number: int) -> str:
    if number not in _CALIBRATIONS:
        raise InvalidArgument("unknown calibration", field="calibration")
    return _CALIBRATIONS[pb.Calibration.ValueType(number)]


def planner_from(number: int) -> str:
    if number not in pb.Planner.values():
        raise InvalidArgument("unknown planner", field="planner")
    name = pb.Planner.Name(pb.Planner.ValueType(number)).removeprefix("PLANNER_").lower()
    return DEFAULT_PLANNER if name == "unspecified" else name


def planner_number(name: str) -> pb.Planner.ValueType:
    return pb.Planner.Value(f"PLANNER_{name.upper()}")


def nodes_from(
    catalogue: HardwareCatalogue, messages: Iterable[pb.Node]
) -> tuple[CandidateNode, ...]:
    return tuple(
        CandidateNode(
            message.node_id,
            described(
                catalogue,
                instance_type=message.instance_type,
                device_type=message.device_type,
                device_count=message.device_count,
                memory_bytes=message.memory_bytes,
                relative_speed=message.relative_speed,
                price_per_hour=message.price_per_hour,
                pool=message.pool,
                spot=message.spot,
                interruptions_per_hour=message.interruptions_per_hour,
                backend=message.backend,
            ),
        )
        for message in messages
    )


def pipelines_from(
    nodes: Sequence[CandidateNode], messages: Iterable[pb.Pipeline], field: str = "pipelines"
) -> tuple[PlacedPipeline, ...]:
    """Pipelines whose stages name nodes of the request."""
    by_id = {node.node_id: node for node in nodes}
    pipelines = []
    for message in messages:
        stages = []
        for stage in message.stages:
            if stage.node_id not in by_id:
                raise InvalidArgument(f"no node {stage.node_id[:64]!r}", field=field)
            node = by_id[stage.node_id]
            tp = stage.tp_degree or node.kind.gpu_count
            stages.append(PlacedStage(node, stage.layers.start, stage.layers.end, tp))
        pipelines.append(PlacedPipeline(tuple(stages), phase_from(message.phase)))
    return tuple(pipelines)


def shares_from(
    messages: Sequence[pb.DeploymentSpec],
    nodes: Sequence[CandidateNode],
    catalogue: HardwareCatalogue,
    calibration: Calibration,
    seed: int,
) -> list[Share]:
    """Models that are to divide these nodes between them."""
    shares = []
    for index, message in enumerate(messages):
        running = pipelines_from(nodes, message.running, f"deployments[{index}].running")
        share = share_from(message, index, catalogue, calibration, seed)
        shares.append(replace(share, running=running))
    return shares


def share_from(
    message: pb.DeploymentSpec,
    index: int,
    catalogue: HardwareCatalogue,
    calibration: Calibration,
    seed: int,
) -> Share:
    """All of it but what runs."""
    model = model_from(message.model)
    return Share(
        message.model.name or f"deployment {index + 1}",
        Costs(model, workload_from(message.workload), calibration, catalogue),
        planner(planner_from(message.planner)),
        objective_from(message.objective),
        message.weight or 1.0,
        message.pipeline_count,
        seed=seed,
        holders=frozenset(one.node_id for one in message.resident),
    )


def phase_from(number: int) -> PipelinePhase:
    if number not in _PHASES:
        raise InvalidArgument("unknown phase", field="phase")
    return _PHASES[pb.Phase.ValueType(number)]


def pipeline_message(pipeline: PlacedPipeline) -> pb.Pipeline:
    return pb.Pipeline(
        stages=[
            pb.Stage(
                node_id=stage.node.node_id,
                layers=common_pb2.LayerRange(start=stage.start, end=stage.end),
                tp_degree=stage.tp,
            )
            for stage in pipeline.stages
        ],
        phase=_PHASE_OF[pipeline.phase],
    )


def pipeline_estimate_message(estimate: PipelineEstimate) -> pb.PipelineEstimate:
    return pb.PipelineEstimate(
        kv_blocks=estimate.kv_blocks,
        max_batch=estimate.max_batch,
        batch_latency_s=estimate.batch_latency_s,
        single_request_latency_s=estimate.single_request_latency_s,
        throughput_rps=estimate.throughput_rps,
        cost_per_hour=estimate.cost_per_hour,
        ttft_s=estimate.load.ttft_s,
        tpot_s=estimate.load.tpot_s,
        end_to_end_s=estimate.load.end_to_end_s,
        throughput_tokens_per_s=estimate.throughput_tokens_per_s,
        stages=[
            pb.StageEstimate(
                prefill_s=stage.prefill_s,
                decode_s=stage.decode_s,
                bound_by=BOUND_OF[stage.bound_by],
                weight_bytes_per_device=stage.weight_bytes_per_device,
                kv_bytes_per_device=stage.kv_bytes_per_device,
            )
            for stage in estimate.stages
        ],
    )


def plan_estimate_message(estimate: PlanEstimate, goodput_rps: float) -> pb.PlanEstimate:
    return pb.PlanEstimate(
        throughput_rps=estimate.throughput_rps,
        cost_per_hour=estimate.cost_per_hour,
        ttft_s=estimate.load.ttft_s,
        tpot_s=estimate.load.tpot_s,
        end_to_end_s=estimate.load.end_to_end_s,
        goodput_rps=goodput_rps,
    )
