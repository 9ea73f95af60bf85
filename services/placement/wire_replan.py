"""Messages of Replan and Explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shuntserve.common.v1 import common_pb2
from shuntserve.placement.v1 import placement_pb2 as pb

from services.common.errors import InvalidArgument
from services.placement import wire
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, PlacedStage
from services.placement.estimate.explain import PipelineExplanation, StageExplanation
from services.placement.replan.change import HYSTERESIS, Change
from services.placement.replan.moves import (
    LOAD_BYTES_PER_S,
    GenerationMove,
    Handover,
    NodeMove,
    ResidentStage,
)
from services.placement.replan.what_if import NodeGroup
from services.placement.search.transport import Sides, even_flows

MOST_READY_IN_S = 1e6
MOST_GROUPS = 4096
MOST_NAME_CHARS = 128
_HANDOVER_OF = {
    Handover.REPLAY: pb.HANDOVER_REPLAY,
    Handover.TRANSFER: pb.HANDOVER_TRANSFER,
}


def change_from(request: pb.ReplanRequest, nodes: Sequence[CandidateNode]) -> Change:
    """The running plan may name nodes that are gone: any class stands in for theirs."""
    known = {node.node_id: node for node in nodes}
    return Change(
        running=tuple(_running(message, known, nodes) for message in request.running),
        resident=resident_from(request.resident, known),
        horizon_s=request.horizon_s or 600.0,
        notice_s=request.notice_s,
        load_bytes_per_s=request.load_bytes_per_s or LOAD_BYTES_PER_S,
        generations=tuple(request.generations),
        tokens_per_generation=request.tokens_per_generation,
        improve=request.improve,
        anew=request.anew,
        phases_only=request.phases_only,
        ready_in_s=_ready_in_s(request),
        nodes_min=request.nodes_min,
        nodes_max=request.nodes_max,
        hysteresis=request.hysteresis if request.HasField("hysteresis") else HYSTERESIS,
    )


def changes_from(
    request: pb.ReplanDeploymentsRequest, nodes: Sequence[CandidateNode]
) -> list[Change]:
    """One a deployment; what they run may name nodes that are gone."""
    if not nodes:
        raise InvalidArgument("no nodes: at least one GPU is needed", field="nodes")
    known = {node.node_id: node for node in nodes}
    return [
        Change(
            running=tuple(_running(message, known, nodes) for message in one.running),
            resident=resident_from(one.resident, known),
            horizon_s=request.horizon_s or 600.0,
            load_bytes_per_s=request.load_bytes_per_s or LOAD_BYTES_PER_S,
            ready_in_s=_ready_in_s(request),
            hysteresis=request.hysteresis if request.HasField("hysteresis") else HYSTERESIS,
        )
        for one in request.deployments
    ]


def _ready_in_s(
    request: pb.ReplanRequest | pb.ReplanDeploymentsRequest,
) -> dict[str, float]:
    for node in request.nodes:
        if not 0 <= node.ready_in_s <= MOST_READY_IN_S:
            raise InvalidArgument(
                f"ready_in_s must be from 0 to {MOST_READY_IN_S:g}", field="ready_in_s"
            )
    return {node.node_id: node.ready_in_s for node in request.nodes if node.ready_in_s}


def _running(
    message: pb.Pipeline, known: dict[str, CandidateNode], nodes: Sequence[CandidateNode]
) -> PlacedPipeline:
    if not message.stages:
        raise InvalidArgument("a running pipeline needs stages", field="running")
    stages = []
    for stage in message.stages:
        node = known.get(stage.node_id) or CandidateNode(stage.node_id, nodes[0].kind)
        tp = stage.tp_degree or node.kind.gpu_count
        stages.append(PlacedStage(node, stage.layers.start, stage.layers.end, tp))
    return PlacedPipeline(tuple(stages), wire.phase_from(message.phase))


def resident_from(
    messages: Sequence[pb.ResidentLayers], known: Mapping[str, CandidateNode]
) -> dict[str, tuple[ResidentStage, ...]]:
    """What nodes of the request hold."""
    held: dict[str, tuple[ResidentStage, ...]] = {}
    for one in messages:
        if one.node_id not in known:
            raise InvalidArgument(f"no node {one.node_id[:64]!r}", field="resident")
        tp = one.tp_degree or known[one.node_id].kind.gpu_count
        more = ResidentStage(one.layers.start, one.layers.end, tp)
        held[one.node_id] = (*held.get(one.node_id, ()), more)
    return held


def groups_from(
    catalogue: HardwareCatalogue, messages: Sequence[pb.NodeGroup]
) -> tuple[NodeGroup, ...]:
    """What varies."""
    if len(messages) > MOST_GROUPS:
        raise InvalidArgument(f"at most {MOST_GROUPS} groups", field="groups")
    groups = []
    for message in messages:
        if not 1 <= len(message.name) <= MOST_NAME_CHARS or not message.name.isprintable():
            raise InvalidArgument(
                f"a group's name has 1 to {MOST_NAME_CHARS} characters", field="groups"
            )
        more = None
        if message.HasField("more"):
            (more,) = wire.nodes_from(catalogue, [message.more])
        groups.append(NodeGroup(message.name, frozenset(message.node_ids), more))
    return tuple(groups)


def node_move_message(move: NodeMove) -> pb.NodeMove:
    return pb.NodeMove(
        node_id=move.stage.node.node_id,
        layers=common_pb2.LayerRange(start=move.stage.start, end=move.stage.end),
        load_bytes=move.load_bytes,
        resident_bytes=move.resident_bytes,
        load_s=move.load_s,
    )


def flow_messages(sides: Sides) -> list[pb.Flow]:
    """Who hands how much on to whom; nothing where pipelines are not split."""
    if not (sides.prefill and sides.decode):
        return []
    flows = even_flows(sides)
    return [
        pb.Flow(prefill=prefill, decode=decode, rate_rps=flows[i, j])
        for i, prefill in enumerate(sides.prefill)
        for j, decode in enumerate(sides.decode)
        if flows[i, j] > 0
    ]


def generation_move_message(move: GenerationMove) -> pb.GenerationMove:
    return pb.GenerationMove(
        running_pipeline=move.running_pipeline,
        handover=_HANDOVER_OF[move.handover],
        kv_bytes=move.kv_bytes,
        replay_tokens=move.replay_tokens,
        handover_s=move.handover_s,
    )


def explanation_message(explained: PipelineExplanation) -> pb.PipelineExplanation:
    return pb.PipelineExplanation(
        stages=[_stage_message(stage) for stage in explained.stages],
        estimate=wire.pipeline_estimate_message(explained.estimate),
    )


def _stage_message(stage: StageExplanation) -> pb.StageExplanation:
    return pb.StageExplanation(
        operations=[
            pb.OperationTime(
                name=op.name,
                prefill_s=op.prefill_s,
                decode_s=op.decode_s,
                prefill_bound=wire.BOUND_OF[op.prefill_bound],
                decode_bound=wire.BOUND_OF[op.decode_bound],
            )
            for op in stage.operations
        ],
        bound_by=wire.BOUND_OF[stage.bound_by],
        prefill_bottleneck=stage.prefill_bottleneck,
        decode_bottleneck=stage.decode_bottleneck,
        memory_bottleneck=stage.memory_bottleneck,
        alternatives=[
            pb.Alternative(
                change=one.change,
                throughput_rps=one.throughput_rps,
                prefill_s=one.prefill_s,
                decode_s=one.decode_s,
            )
            for one in stage.alternatives
        ],
    )
