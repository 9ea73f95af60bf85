"""The placement service from the command line: the same plain data as a plan made here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from shuntserve.placement.v1 import placement_pb2 as pb
from shuntserve.placement.v1 import placement_pb2_grpc

from services.common import channels
from services.common.errors import InvalidArgument
from services.common.phases import PipelinePhase
from services.common.roles import Role
from services.common.settings import TlsSettings, read
from services.common.statuses import from_rpc_error
from services.placement.command.report import number
from services.placement.estimate.cluster import CandidateNode, Workload
from services.placement.estimate.model import built_in_names, read_config
from services.placement.search.problem import Objective, ObjectiveKind
from services.placement.search.registry import NAMES

_KINDS = {
    ObjectiveKind.THROUGHPUT: pb.OBJECTIVE_KIND_THROUGHPUT,
    ObjectiveKind.THROUGHPUT_PER_COST: pb.OBJECTIVE_KIND_THROUGHPUT_PER_COST,
    ObjectiveKind.GOODPUT_PER_COST: pb.OBJECTIVE_KIND_GOODPUT_PER_COST,
}
_PHASES = {pb.PHASE_PREFILL: PipelinePhase.PREFILL, pb.PHASE_DECODE: PipelinePhase.DECODE}
_CALIBRATIONS = {"measured": pb.CALIBRATION_MEASURED, "nominal": pb.CALIBRATION_NOMINAL}


def solve_on(
    server: str,
    model: str,
    nodes: Sequence[CandidateNode],
    workload: Workload,
    objective: Objective,
    planner: str,
    calibration: str,
    seed: int,
    time_limit_s: float,
) -> dict[str, Any]:
    """Asks a server for a plan; raises the server's error."""
    if calibration not in _CALIBRATIONS:
        raise InvalidArgument("a server knows nominal and measured", field="calibration")
    if planner not in NAMES:
        raise InvalidArgument(f"unknown planner {planner[:40]!r}", field="planner")
    request = pb.PlanRequest(
        model=_model(model),
        nodes=[_node(node) for node in nodes],
        workload=pb.Workload(
            input_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
            arrival_rate_rps=workload.arrival_rate_rps,
        ),
        objective=pb.Objective(
            kind=_KINDS[objective.kind],
            budget_per_hour=objective.budget_per_hour,
            ttft_target_s=objective.ttft_target_s,
            tpot_target_s=objective.tpot_target_s,
            uniform_tp=objective.uniform_tp,
            min_on_demand_share=objective.min_on_demand_share,
            recovery_s=objective.recovery_s,
            allow_phase_split=objective.allow_phase_split,
        ),
        planner=pb.Planner.Value(f"PLANNER_{planner.upper()}"),
        calibration=_CALIBRATIONS[calibration],
        seed=seed,
    )
    return _data(planner, nodes, asyncio.run(_plan(server, request, time_limit_s)))


async def _plan(server: str, request: pb.PlanRequest, timeout_s: float) -> pb.PlanResponse:
    async with channels.open_channel(server, Role.PLACEMENT, tls=read(TlsSettings)) as channel:
        stub = placement_pb2_grpc.PlacementServiceStub(channel)
        try:
            return await stub.Plan(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def _model(name_or_path: str) -> pb.ModelSpec:
    if name_or_path in built_in_names():
        return pb.ModelSpec(name=name_or_path)
    name, text = read_config(name_or_path)
    return pb.ModelSpec(name=name, config_json=text)


def _node(node: CandidateNode) -> pb.Node:
    kind = node.kind
    return pb.Node(
        node_id=node.node_id,
        instance_type=kind.type_name,
        memory_bytes=kind.memory_bytes,
        relative_speed=kind.speed,
        price_per_hour=kind.price_per_hour,
        pool=kind.pool,
        spot=kind.spot,
        interruptions_per_hour=kind.interruptions_per_hour,
        backend=kind.backend,
    )


def _data(planner: str, nodes: Sequence[CandidateNode], reply: pb.PlanResponse) -> dict[str, Any]:
    types = {node.node_id: node.kind.type_name for node in nodes}
    return {
        "planner": planner,
        "pipelines": [
            _pipeline(types, pipeline, estimate)
            for pipeline, estimate in zip(reply.pipelines, reply.pipeline_estimates, strict=True)
        ],
        "throughput_rps": reply.estimate.throughput_rps,
        "cost_per_hour": reply.estimate.cost_per_hour,
        "solve_time_s": reply.solve_time_s,
        "upper_bound_rps": reply.upper_bound_rps if reply.HasField("upper_bound_rps") else None,
        **_load(reply.estimate),
        "late": reply.late or None,
    }


def _load(estimate: pb.PlanEstimate | pb.PipelineEstimate) -> dict[str, float | None]:
    return {
        "ttft_s": number(estimate.ttft_s),
        "tpot_s": number(estimate.tpot_s),
        "end_to_end_s": number(estimate.end_to_end_s),
    }


def _pipeline(
    types: dict[str, str], pipeline: pb.Pipeline, estimate: pb.PipelineEstimate
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kv_blocks": estimate.kv_blocks,
        "max_batch": estimate.max_batch,
        "batch_latency_s": estimate.batch_latency_s,
        "single_request_latency_s": estimate.single_request_latency_s,
        "throughput_rps": estimate.throughput_rps,
        "cost_per_hour": estimate.cost_per_hour,
        **_load(estimate),
        "stages": [
            {
                "instance_type": types[stage.node_id],
                "layers": stage.layers.end - stage.layers.start,
                "tp": stage.tp_degree,
                "prefill_s": one.prefill_s,
                "decode_s": one.decode_s,
                "bound_by": pb.Bound.Name(one.bound_by).removeprefix("BOUND_").lower(),
                "node": stage.node_id,
            }
            for stage, one in zip(pipeline.stages, estimate.stages, strict=True)
        ],
    }
    if pipeline.phase in _PHASES:
        data["phase"] = _PHASES[pipeline.phase].value
    return data
