"""The state of a mesh: from its directory, its services' health and the controller."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.cli import processes
from services.cli.mesh_directory import MeshState, ServiceRecord
from services.common import channels, health
from services.common.machine import MachineFacts
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.common.wire_machine import machine_from

TIMEOUT_S = 3.0
_PHASES = {
    controller_pb2.PIPELINE_PHASE_UNSPECIFIED: "both",
    controller_pb2.PIPELINE_PHASE_PREFILL: "prefill",
    controller_pb2.PIPELINE_PHASE_DECODE: "decode",
}
MAX_PAGES = 1000
"""Of a status; what is behind them is not shown."""


async def controller_status(
    address: str, tls: TlsSettings | None = None
) -> controller_pb2.GetStatusResponse | None:
    """What the controller says, all pages of it; None while it is away."""
    status = controller_pb2.GetStatusResponse()
    async with channels.open_channel(address, Role.CONTROLLER, tls=tls or TlsSettings()) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        for _ in range(MAX_PAGES):
            request = controller_pb2.GetStatusRequest(page_token=status.next_page_token)
            status.ClearField("next_page_token")
            try:
                status.MergeFrom(await stub.GetStatus(request, timeout=TIMEOUT_S))
            except grpc.aio.AioRpcError:
                return None
            if not status.next_page_token:
                break
    return status


def asleep(status: controller_pb2.GetStatusResponse) -> bool:
    """It has a plan, of no pipeline."""
    return status.HasField("plan") and not any(d.pipeline_ids for d in status.plan.deployments)


def ready_pipelines(status: controller_pb2.GetStatusResponse) -> int:
    """Pipelines that take requests."""
    ready = controller_pb2.PIPELINE_STATE_READY
    return sum(pipeline.state == ready for pipeline in status.pipelines)


async def leading(state: MeshState) -> str | None:
    """Address of the controller that leads; of one that is there where none does now."""
    there = [s.grpc for s in state.services if s.is_controller and s.pid and s.grpc is not None]
    if len(there) > 1:
        leads = await asyncio.gather(
            *(health.is_serving(address, Role.CONTROLLER) for address in there)
        )
        there = [one for one, leads_now in zip(there, leads, strict=True) if leads_now] or there
    return there[0] if there else None


async def mesh_status(state: MeshState) -> dict[str, Any]:
    """The JSON of `shunt status --json`; without the controller, its lists are empty."""
    address, *answers = await asyncio.gather(
        leading(state), *(_service(service) for service in state.services)
    )
    status = await controller_status(address) if address else None
    if status is None:
        status = controller_pb2.GetStatusResponse()
    for service, answer in zip(state.services, answers, strict=True):
        if service.is_controller and service.grpc != address and answer["state"] == "starting":
            answer["state"] = "standby"
    return {"services": answers, **told_by_controller(status)}


def told_by_controller(status: controller_pb2.GetStatusResponse) -> dict[str, Any]:
    """Of the JSON of a status all that the controller knows."""
    return {
        "faults": [fault_json(fault) for fault in status.faults],
        "model": _model(status),
        "deployments": [_deployment(deployment) for deployment in status.deployments],
        "plan": _plan(status) if status.HasField("plan") else None,
        "strategy": status.strategy or None,
        "nodes": [_node(node) for node in status.nodes],
        "pipelines": [_pipeline(pipeline) for pipeline in status.pipelines],
        "generations": [
            {
                "id": generation.generation_id,
                "epoch": generation.epoch,
                "pipeline": generation.pipeline_id or None,
                "journaled": generation.journaled_tokens,
                "standing": _standing(generation),
                "unread": generation.unread,
                "moved_by": _moved_by(generation),
                "inexact_from": list(generation.inexact_from) or None,
            }
            for generation in status.generations
        ],
        "offers": [_offer(offer) for offer in status.offers],
        "budget_per_hour": _optional(status, "budget_per_hour"),
        "cost_per_hour": _optional(status, "cost_per_hour"),
        "on_demand_cost_per_hour": _optional(status, "on_demand_cost_per_hour"),
        "spares": [spare_of(spare) for spare in status.spares],
        "spares_cost_per_hour": _optional(status, "spares_cost_per_hour"),
        "workloads": [_workload(workload) for workload in status.workloads],
        "finished_generations": status.finished_generations,
        "cancelled_generations": status.cancelled_generations,
    }


def _optional(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def _offer(offer: controller_pb2.OfferStatus) -> dict[str, Any]:
    return {
        "id": offer.offer_id,
        "instance_type": offer.instance_type,
        "count": offer.count,
        "running": offer.running,
        "price_per_hour": _optional(offer, "price_per_hour"),
        "pool": offer.pool,
        "spot": offer.spot,
        "interruptions_per_hour": offer.interruptions_per_hour,
        "relative_speed": offer.relative_speed,
        "backend": offer.backend,
        "memory_bytes": offer.memory_bytes,
        "device_type": offer.device_type,
        "launch_s": offer.launch_s,
        "declared": offer.declared,
    }


def spare_of(spare: controller_pb2.SpareStatus) -> dict[str, Any]:
    """Layers are those of its first stage, null while it holds none; lists have all of them."""
    held = [[layers.start, layers.end] for layers in spare.held]
    return {
        "node": spare.node_id,
        "model": spare.model_id or None,
        "layers": held[0] if held else None,
        "held": held,
        "lacks": [[layers.start, layers.end] for layers in spare.lacks],
        "price_per_hour": _optional(spare, "price_per_hour"),
    }


def _workload(workload: controller_pb2.WorkloadStatus) -> dict[str, Any]:
    """Tokens that nobody knows yet are null."""
    return {
        "model": workload.model_id,
        "arrival_rate_rps": workload.arrival_rate_rps,
        "input_tokens": workload.input_tokens or None,
        "output_tokens": workload.output_tokens or None,
        "open": workload.open,
    }


def _model(status: controller_pb2.GetStatusResponse) -> dict[str, str | None]:
    return {
        "id": status.model.model_id or None,
        "digest": status.model.digest or None,
        "newer_in_store": status.newer_digest or None,
    }


def _deployment(deployment: controller_pb2.DeploymentView) -> dict[str, Any]:
    aim = deployment.aim
    return {
        "model": deployment.model.model_id,
        "digest": deployment.model.digest,
        "objective": aim.objective,
        "ttft_target_s": aim.ttft_target_s or None,
        "tpot_target_s": aim.tpot_target_s or None,
        "weight": aim.weight,
        "ready_pipelines": deployment.ready_pipelines,
        "unusable": deployment.unusable or None,
        "newer_in_store": deployment.newer_digest or None,
    }


def _plan(status: controller_pb2.GetStatusResponse) -> dict[str, Any]:
    return {
        "number": status.plan.number,
        "deployments": [
            {
                "model": deployment.model.model_id,
                "objective": deployment.objective,
                "pipelines": list(deployment.pipeline_ids),
            }
            for deployment in status.plan.deployments
        ],
        "adopted_unix_s": _optional(status.plan, "adopted_unix_s"),
        "causes": list(status.plan.causes),
    }


def _standing(generation: controller_pb2.GenerationStatus) -> str:
    name = controller_pb2.Standing.Name(generation.standing)
    return name.removeprefix("STANDING_").lower()


def _moved_by(generation: controller_pb2.GenerationStatus) -> str | None:
    """None for one that began where it is."""
    if not generation.moved_by:
        return None
    name = controller_pb2.MovedBy.Name(generation.moved_by)
    return name.removeprefix("MOVED_BY_").lower()


async def _service(service: ServiceRecord) -> dict[str, Any]:
    lives = bool(service.pid) and processes.lives(service.pid)
    state, reason = "down", ""
    if lives and service.grpc is not None:
        state = "ready" if await health.is_serving(service.grpc, service.role) else "starting"
    if state == "ready" and service.http is not None:
        complaint = await asyncio.to_thread(health.complaint, f"{service.http}/readyz")
        if complaint is not None:
            state, reason = "waiting", complaint.reason
    return {
        "name": service.name,
        "pid": service.pid if lives else None,
        "http": service.http,
        "grpc": service.grpc,
        "state": state,
        "reason": reason or None,
    }


def fault_json(fault: controller_pb2.Fault) -> dict[str, Any]:
    """One of `faults` in the JSON of the status."""
    kind = controller_pb2.FaultKind.Name(fault.kind)
    return {
        "kind": kind.removeprefix("FAULT_KIND_").lower(),
        "cause": fault.cause,
        "node": fault.node_id or None,
        "pipeline": fault.pipeline_id or None,
        "since_unix_s": fault.since_unix_s,
        "failures": fault.failures,
        "permanent": fault.permanent,
    }


def _node(node: controller_pb2.NodeStatus) -> dict[str, Any]:
    name = controller_pb2.NodeState.Name(node.state)
    lost = node.state == controller_pb2.NODE_STATE_LOST
    lives = bool(node.pid) and not lost and processes.lives(node.pid)
    return {
        "id": node.node_id,
        "pid": node.pid if lives else None,
        "incarnation": node.incarnation or None,
        "state": name.removeprefix("NODE_STATE_").lower(),
        "pipeline": node.pipeline_id or None,
        "stage": node.stage_index if node.HasField("stage_index") else None,
        "offer": node.offer_id or None,
        "declared": node.declared,
        "backend": node.backend or None,
        "machine": _machine(machine_from(node.machine)),
    }


def _machine(facts: MachineFacts) -> dict[str, Any]:
    """Each fact with its source; what nobody knows is null."""
    values = asdict(facts)
    return {
        name: {"value": values[name], "source": facts.source(name).value}
        for name in values
        if name != "declared"
    }


def _pipeline(pipeline: controller_pb2.PipelineStatus) -> dict[str, Any]:
    name = controller_pb2.PipelineState.Name(pipeline.state)
    return {
        "id": pipeline.pipeline_id,
        "state": name.removeprefix("PIPELINE_STATE_").lower(),
        "phase": _PHASES[pipeline.phase],
        "formation": pipeline.formation_id or None,
        "stages": [
            {
                "node": stage.node_id or None,
                "layers": [stage.layers.start, stage.layers.end],
                "tp": stage.tp_degree,
                "backend": stage.backend or None,
            }
            for stage in pipeline.stages
        ],
    }
