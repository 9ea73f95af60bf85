"""What is asked of placement, as its messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shuntserve.placement.v1 import placement_pb2

from services.common import wire
from services.common.errors import DataLoss
from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.difference import StageToBe
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.plan import Deployment, PlannedStage
from services.controller.core.cluster.question import Question
from services.controller.core.cluster.workload import Workload

MAX_TOKENS = 1 << 24
_OBJECTIVES = {
    "throughput": placement_pb2.OBJECTIVE_KIND_THROUGHPUT,
    "throughput-per-cost": placement_pb2.OBJECTIVE_KIND_THROUGHPUT_PER_COST,
    "goodput-per-cost": placement_pb2.OBJECTIVE_KIND_GOODPUT_PER_COST,
}
_PHASES = {
    PipelinePhase.BOTH: placement_pb2.PHASE_UNSPECIFIED,
    PipelinePhase.PREFILL: placement_pb2.PHASE_PREFILL,
    PipelinePhase.DECODE: placement_pb2.PHASE_DECODE,
}


def node_to(
    name: str, shape: NodeShape, offer: Offer | None = None, *, on_offer: bool = False
) -> placement_pb2.Node:
    """As placement knows it; what nobody names a price for is free."""
    node = placement_pb2.Node(
        node_id=name,
        device_type=shape.device_type,
        device_count=shape.device_count,
        memory_bytes=shape.memory_bytes // shape.device_count,  # of each
        relative_speed=shape.relative_speed,
        backend=shape.backend,
    )
    if offer is not None:
        node.price_per_hour = offer.price_per_hour or 0.0
        node.pool = offer.pool
        node.spot = offer.spot
        node.interruptions_per_hour = offer.interruptions_per_hour
        node.ready_in_s = offer.launch_s if on_offer else 0.0
    return node


def workload_to(workload: Workload) -> placement_pb2.Workload:
    """Tokens that are not known are placement's to assume."""
    return placement_pb2.Workload(
        input_tokens=_tokens(workload.input_tokens),
        output_tokens=_tokens(workload.output_tokens),
        arrival_rate_rps=workload.arrival_rate_rps,
    )


def _tokens(mean: float) -> int:
    return max(1, min(round(mean), MAX_TOKENS)) if mean else 0


def objective_to(
    aim: Aim, *, priced: bool, budget_per_hour: float = 0.0
) -> placement_pb2.Objective:
    """Where nobody names a price, cost counts for nothing."""
    kind = _OBJECTIVES[aim.objective]
    return placement_pb2.Objective(
        kind=kind if priced else placement_pb2.OBJECTIVE_KIND_THROUGHPUT,
        budget_per_hour=budget_per_hour,
        ttft_target_s=aim.ttft_target_s,
        tpot_target_s=aim.tpot_target_s,
    )


def pipeline_to(
    stages: Sequence[PlannedStage | StageToBe], phase: PipelinePhase = PipelinePhase.BOTH
) -> placement_pb2.Pipeline:
    return placement_pb2.Pipeline(
        phase=_PHASES[phase],
        stages=[
            placement_pb2.Stage(
                node_id=stage.node_id,
                layers=wire.layers_to(stage.layers),
                tp_degree=stage.tp_degree,
            )
            for stage in stages
        ],
    )


def phase_from(number: int) -> PipelinePhase:
    """Raises DataLoss for one that there is not."""
    found = next((phase for phase, told in _PHASES.items() if told == number), None)
    if found is None:
        raise DataLoss("a pipeline of the plan has a phase that nobody knows", field="phase")
    return found


def model_to(goal: Goal) -> placement_pb2.ModelSpec:
    facts = goal.facts
    return placement_pb2.ModelSpec(
        name=facts.model_id,
        config_json=facts.config_json,
        part_bytes=facts.part_bytes,
        backends=facts.backends,
    )


def flows_question(
    goal: Goal, deployment: Deployment, workload: Workload | None
) -> placement_pb2.EstimateRequest:
    """Its stages' nodes by places: some are yet to come, and have no names."""
    nodes, pipelines = [], []
    for place, pipeline in enumerate(deployment.pipelines):
        stages = [
            replace(stage, node_id=f"{place}-{index}")
            for index, stage in enumerate(pipeline.stages)
        ]
        nodes += [node_to(stage.node_id, stage.shape) for stage in stages]
        pipelines.append(pipeline_to(stages, pipeline.phase))
    return placement_pb2.EstimateRequest(
        model=model_to(goal),
        nodes=nodes,
        pipelines=pipelines,
        workload=None if workload is None else workload_to(workload),
    )


def nodes_to(question: Question) -> list[placement_pb2.Node]:
    """Those that are there first: of equal ones they are taken first."""
    return [
        *(node_to(n.node_id, n.shape, n.offer, on_offer=n.starts) for n in question.nodes),
        *(
            node_to(one.name, one.offer.shape, one.offer, on_offer=True)
            for one in question.candidates
        ),
    ]


def resident_to(question: Question, goal: Goal) -> list[placement_pb2.ResidentLayers]:
    return [
        placement_pb2.ResidentLayers(
            node_id=node.node_id,
            layers=wire.layers_to(held.layers),
            tp_degree=held.tp_degree,
        )
        for node in question.nodes
        for held in node.held
        if held.model == goal.model
    ]
