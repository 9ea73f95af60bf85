"""The controller's own values as messages, and what engines and routers send as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import inf

from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common import wire
from services.common.errors import InvalidArgument
from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    CheckpointResult,
    DeployedModel,
    GenerationState,
    GenerationView,
    Grant,
    LeaveReason,
    MovedBy,
    ResumeQuestion,
    Route,
)
from services.common.generation import GenerationRequest, ModelRef, TokenSpan
from services.common.nodes import BACKENDS, MOST_DEVICES, NodeFacts, NodeShape
from services.common.phases import PipelinePhase
from services.common.speeds import MAX_SPEED
from services.common.wire_machine import machine_from, machine_to
from services.common.wire_notices import notice_from
from services.controller.core.cluster.actions import Beat, NodeState, PipelineState
from services.controller.core.cluster.faults import FaultKind, FaultView
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import MAX_NOTICE_S, Market, Offer
from services.controller.core.cluster.plan import THROUGHPUT
from services.controller.core.cluster.views import NodeView, PipelineView, SpareView
from services.controller.core.ledger.population import OpenGeneration, Standing
from services.controller.journal.journal import LoggedEvent

MAX_NAME_CHARS = 128
_DIGEST = re.compile(r"([0-9a-f]{64})?")
MAX_MEMBERS = 1024
"""Of one formation: a stage has a layer or more."""
MAX_EPOCH = 2**31 - 1
"""No generation gets there; the next one must fit a message."""

_REFUSALS = {
    CheckpointRefusal.STALE_EPOCH: pb.CHECKPOINT_REFUSAL_STALE_EPOCH,
    CheckpointRefusal.DIVERGED: pb.CHECKPOINT_REFUSAL_DIVERGED,
    CheckpointRefusal.ENDED: pb.CHECKPOINT_REFUSAL_ENDED,
    CheckpointRefusal.UNKNOWN_FORMATION: pb.CHECKPOINT_REFUSAL_UNKNOWN_FORMATION,
}
_STANDINGS = {
    Standing.QUEUED: pb.STANDING_QUEUED,
    Standing.RUNNING: pb.STANDING_RUNNING,
    Standing.PARKED: pb.STANDING_PARKED,
}
_GENERATION_STATES = {
    GenerationState.OPEN: pb.GENERATION_STATE_OPEN,
    GenerationState.FINISHED: pb.GENERATION_STATE_FINISHED,
    GenerationState.CANCELLED: pb.GENERATION_STATE_CANCELLED,
}
_LEAVE_REASONS: dict[int, LeaveReason] = {
    pb.LEAVE_REASON_SILENT: LeaveReason.SILENT,
    pb.LEAVE_REASON_UNREACHABLE: LeaveReason.UNREACHABLE,
    pb.LEAVE_REASON_REFUSED: LeaveReason.REFUSED,
}
_NODE_STATES = {
    NodeState.STARTING: pb.NODE_STATE_STARTING,
    NodeState.IDLE: pb.NODE_STATE_IDLE,
    NodeState.LOADING: pb.NODE_STATE_LOADING,
    NodeState.READY: pb.NODE_STATE_READY,
    NodeState.DRAINING: pb.NODE_STATE_DRAINING,
    NodeState.LOST: pb.NODE_STATE_LOST,
    NodeState.SPARE: pb.NODE_STATE_SPARE,
}
_PIPELINE_STATES = {
    PipelineState.LOADING: pb.PIPELINE_STATE_LOADING,
    PipelineState.READY: pb.PIPELINE_STATE_READY,
    PipelineState.DRAINING: pb.PIPELINE_STATE_DRAINING,
    PipelineState.LOST: pb.PIPELINE_STATE_LOST,
}
_PIPELINE_PHASES = {
    PipelinePhase.BOTH: pb.PIPELINE_PHASE_UNSPECIFIED,
    PipelinePhase.PREFILL: pb.PIPELINE_PHASE_PREFILL,
    PipelinePhase.DECODE: pb.PIPELINE_PHASE_DECODE,
}
_FAULT_KINDS = {
    FaultKind.START: pb.FAULT_KIND_START,
    FaultKind.LOAD: pb.FAULT_KIND_LOAD,
    FaultKind.FORM: pb.FAULT_KIND_FORM,
    FaultKind.PLAN: pb.FAULT_KIND_PLAN,
    FaultKind.SPARE: pb.FAULT_KIND_SPARE,
}


@lru_cache(maxsize=4096)
def name_from(text: str, field: str) -> str:
    """An id a process drew or was given; raises InvalidArgument for an empty or a long one."""
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise InvalidArgument(f"{field} has 1 to {MAX_NAME_CHARS} characters", field=field)
    return text


def model_from(message: common_pb2.ModelRef) -> ModelRef:
    """A model as operators name it; raises InvalidArgument, naming the field."""
    if not _DIGEST.fullmatch(message.digest):
        raise InvalidArgument("digest has 64 hexadecimal digits, or none", field="digest")
    return ModelRef(name_from(message.model_id, "model_id"), message.digest)


def aim_from(message: pb.Aim) -> Aim:
    """Raises InvalidArgument, naming the field."""
    return Aim(
        message.objective or THROUGHPUT,
        message.ttft_target_s,
        message.tpot_target_s,
        message.weight if message.weight else 1.0,
    )


generation_id_from = lru_cache(maxsize=4096)(wire.generation_id_from)


def backend_from(name: str) -> str:
    """Raises InvalidArgument for one that is not known."""
    if name not in BACKENDS:
        raise InvalidArgument(f"one of {', '.join(BACKENDS)}", field="backend")
    return name


def facts_from(message: pb.RegisterRequest) -> NodeFacts:
    """Raises InvalidArgument, naming the field."""
    host, _, port = name_from(message.address, "address").rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InvalidArgument("address reads host:port", field="address")
    if not 0 < message.relative_speed <= MAX_SPEED:  # nor is NaN a speed
        raise InvalidArgument(
            f"relative_speed must lie in (0, {MAX_SPEED:g}]", field="relative_speed"
        )
    if message.device_count > MOST_DEVICES:
        raise InvalidArgument(f"at most {MOST_DEVICES}", field="device_count")
    if message.metrics_port > 65535:
        raise InvalidArgument("metrics_port lies in [0, 65535]", field="metrics_port")
    if message.memory_bytes == 0:
        raise InvalidArgument("memory_bytes must be over 0", field="memory_bytes")
    return NodeFacts(
        node_id=name_from(message.node_id, "node_id"),
        incarnation=name_from(message.incarnation, "incarnation"),
        address=message.address,
        pid=message.pid,
        shape=NodeShape(
            message.memory_bytes,
            message.relative_speed,
            name_from(message.device_type or "cpu", "device_type"),
            message.device_count or 1,
            backend_from(message.backend or "native"),
        ),
        machine=machine_from(message.machine),
        metrics_port=message.metrics_port,
    )


def _departure_from(message: pb.HeartbeatRequest) -> float | None:
    if not message.HasField("departs_in_s"):
        return None
    if not 0 <= message.departs_in_s <= MAX_NOTICE_S:
        raise InvalidArgument(f"departs_in_s lies in [0, {MAX_NOTICE_S:g}]", field="departs_in_s")
    return message.departs_in_s


def beat_from(message: pb.HeartbeatRequest) -> Beat:
    """Raises InvalidArgument, naming the field."""
    if len(message.lost_node_ids) > MAX_MEMBERS:
        raise InvalidArgument(
            f"a formation has at most {MAX_MEMBERS} members", field="lost_node_ids"
        )
    formation_id = message.formation_id
    return Beat(
        node_id=name_from(message.node_id, "node_id"),
        incarnation=name_from(message.incarnation, "incarnation"),
        formation_id=name_from(formation_id, "formation_id") if formation_id else "",
        sampled_tokens=message.sampled_tokens,
        lost_node_ids=tuple(name_from(name, "lost_node_ids") for name in message.lost_node_ids),
        steps=message.steps,
        has_work=message.has_work,
        departs_in_s=_departure_from(message),
        notice=notice_from(message.notice),
    )


def request_from(
    message: common_pb2.GenerationRequest, vocab_size: int | None
) -> GenerationRequest:
    """Raises InvalidArgument for what a model of this vocabulary cannot have been asked."""
    request = wire.request_from(message)
    if vocab_size is not None and max(request.prompt_ids) >= vocab_size:
        raise InvalidArgument(f"ids lie below {vocab_size}", field="prompt_ids")
    return request


def spans_from(
    messages: Sequence[common_pb2.TokenSpan], vocab_size: int | None
) -> tuple[TokenSpan, ...]:
    """Raises InvalidArgument for ids outside the vocabulary and for two spans of one choice: each
    alone is compared with what is held, not with the other."""
    few = len(messages) <= wire.MAX_CHOICES
    if not few or len({message.choice for message in messages}) != len(messages):
        raise InvalidArgument("one run a choice", field="runs")
    spans = wire.spans_from(messages)
    for span in spans:
        if vocab_size is not None and span.ids and max(span.ids) >= vocab_size:
            raise InvalidArgument(f"ids lie below {vocab_size}", field="ids")
    return spans


_TO_MOVED_BY: dict[MovedBy, pb.MovedBy.ValueType] = {
    "": pb.MOVED_BY_UNSPECIFIED,
    "replay": pb.MOVED_BY_REPLAY,
    "kv": pb.MOVED_BY_KV,
}
_MOVED_BY: dict[int, MovedBy] = {value: name for name, value in _TO_MOVED_BY.items()}


def checkpoint_from(message: pb.Checkpoint, vocab_size: int | None) -> Checkpoint:
    """Raises InvalidArgument, naming the field."""
    generation_id = generation_id_from(message.generation_id)
    if message.epoch == 0:
        raise InvalidArgument("epochs count from 1", field="epoch")
    request = None
    if message.HasField("request"):
        request = request_from(message.request, vocab_size)
        if request.generation_id != generation_id:
            raise InvalidArgument("the request has another id", field="request")
    return Checkpoint(
        generation_id=generation_id,
        epoch=message.epoch,
        incarnation=name_from(message.incarnation, "incarnation"),
        formation_id=name_from(message.formation_id, "formation_id"),
        request=request,
        spans=spans_from(message.runs, vocab_size),
        sealed=message.sealed,
        unread=message.unread,
        moved_by=_MOVED_BY.get(message.moved_by, ""),
        inexact=message.inexact,
    )


def question_from(message: pb.ResumeRequest, vocab_size: int | None) -> ResumeQuestion:
    """Raises InvalidArgument, naming the field."""
    generation_id = generation_id_from(message.generation_id)
    if message.last_epoch > MAX_EPOCH:
        raise InvalidArgument(f"last_epoch is at most {MAX_EPOCH}", field="last_epoch")
    held = spans_from(message.held, vocab_size)
    if any(span.start for span in held):
        raise InvalidArgument("held has one run from position 0 a choice", field="held")
    request = None
    if message.HasField("request"):
        request = request_from(message.request, vocab_size)
        if request.generation_id != generation_id:
            raise InvalidArgument("the request has another id", field="request")
        if any(span.choice >= request.choices for span in held):
            raise InvalidArgument(f"choices lie below {request.choices}", field="held")
    left = message.left_formation_id
    return ResumeQuestion(
        generation_id,
        message.last_epoch,
        request,
        held,
        name_from(left, "left_formation_id") if left else "",
        _LEAVE_REASONS.get(message.reason),
        message.unheard_s if message.HasField("unheard_s") else inf,
        message.handed_on,
    )


def result_to(result: CheckpointResult) -> pb.CheckpointResult:
    return pb.CheckpointResult(
        generation_id=result.generation_id,
        epoch=result.epoch,
        lengths=wire.lengths_to(result.lengths),
        refusal=(
            pb.CHECKPOINT_REFUSAL_UNSPECIFIED
            if result.refusal is None
            else _REFUSALS[result.refusal]
        ),
    )


def route_to(route: Route) -> pb.Route:
    return pb.Route(
        pipeline_id=route.pipeline_id,
        formation_id=route.formation_id,
        incarnation=route.incarnation,
        address=route.address,
        throughput_tokens_per_s=route.throughput_tokens_per_s,
        model=wire.model_to(route.model),
        max_positions=route.max_positions,
        hands_on=route.hands_on,
    )


def deployed_to(deployed: DeployedModel) -> pb.DeployedModel:
    return pb.DeployedModel(
        model=wire.model_to(deployed.model), unusable=deployed.unusable, asleep=deployed.asleep
    )


def deployment_to(
    goal: Goal, ready_pipelines: int, unusable: str, newer_digest: str
) -> pb.DeploymentView:
    """A deployment and how it fares."""
    aim = goal.aim
    return pb.DeploymentView(
        model=wire.model_to(goal.model),
        aim=pb.Aim(
            objective=aim.objective,
            ttft_target_s=aim.ttft_target_s,
            tpot_target_s=aim.tpot_target_s,
            weight=aim.weight,
        ),
        ready_pipelines=ready_pipelines,
        unusable=unusable,
        newer_digest=newer_digest,
    )


def grant_to(grant: Grant) -> pb.ResumeResponse:
    return pb.ResumeResponse(
        epoch=grant.epoch,
        head=None if grant.head is None else route_to(grant.head),
        base=wire.spans_to(grant.base),
        finished=grant.finished,
        kv_source=None if grant.kv_source is None else wire.kv_source_to(grant.kv_source),
    )


def view_to(view: GenerationView) -> pb.GetGenerationResponse:
    return pb.GetGenerationResponse(
        request=wire.request_to(view.request),
        runs=wire.spans_to(view.spans),
        epoch=view.epoch,
        head=None if view.head is None else route_to(view.head),
        state=_GENERATION_STATES[view.state],
        numerics_classes=view.classes,
    )


def node_to(node: NodeView, offer_id: str, declared: bool) -> pb.NodeStatus:
    """`declared`: the offer says what the node is able to do."""
    return pb.NodeStatus(
        node_id=node.node_id,
        pid=node.pid,
        incarnation=node.incarnation,
        state=_NODE_STATES[node.state],
        pipeline_id=node.pipeline_id,
        stage_index=node.stage_index,
        address=node.address,
        offer_id=offer_id,
        declared=declared,
        machine=machine_to(node.machine),
        backend=node.backend,
    )


def spare_to(spare: SpareView) -> pb.SpareStatus:
    return pb.SpareStatus(
        node_id=spare.node_id,
        layers=wire.layers_to(spare.held[0]) if spare.held else None,
        model_id=spare.model_id,
        held=map(wire.layers_to, spare.held),
        lacks=map(wire.layers_to, spare.lacks),
        price_per_hour=spare.price_per_hour,
    )


def offer_to(offer: Offer, market: Market) -> pb.OfferStatus:
    """As the market has it."""
    return pb.OfferStatus(
        offer_id=offer.offer_id,
        instance_type=offer.instance_type,
        memory_bytes=offer.shape.memory_bytes,
        relative_speed=offer.shape.relative_speed,
        device_type=offer.shape.device_type,
        count=offer.count,
        running=market.running(offer.offer_id),
        price_per_hour=offer.price_per_hour,
        pool=offer.pool,
        spot=offer.spot,
        interruptions_per_hour=offer.interruptions_per_hour,
        launch_s=offer.launch_s,
        declared=offer.declared,
        backend=offer.shape.backend,
    )


def fault_to(fault: FaultView, unix_offset_s: float) -> pb.Fault:
    """`unix_offset_s`: wall time less the clock that the fault's time is on."""
    return pb.Fault(
        kind=_FAULT_KINDS[fault.kind],
        cause=fault.cause,
        node_id=fault.node_id,
        pipeline_id=fault.pipeline_id,
        since_unix_s=fault.since_s + unix_offset_s,
        failures=fault.failures,
        permanent=fault.permanent,
    )


def pipeline_to(pipeline: PipelineView) -> pb.PipelineStatus:
    return pb.PipelineStatus(
        pipeline_id=pipeline.pipeline_id,
        state=_PIPELINE_STATES[pipeline.state],
        formation_id=pipeline.formation_id,
        stages=[
            pb.StageStatus(
                node_id=stage.node_id,
                layers=wire.layers_to(stage.layers),
                tp_degree=stage.tp_degree,
                backend=stage.backend,
            )
            for stage in pipeline.stages
        ],
        phase=_PIPELINE_PHASES[pipeline.phase],
    )


def generation_to(generation: OpenGeneration) -> pb.GenerationStatus:
    return pb.GenerationStatus(
        generation_id=generation.generation_id,
        epoch=generation.epoch,
        pipeline_id=generation.pipeline_id,
        journaled_tokens=generation.journaled_tokens,
        standing=_STANDINGS[generation.standing],
        unread=generation.unread,
        moved_by=_TO_MOVED_BY[generation.moved_by],
        inexact_from=generation.inexact_from,
    )


def event_to(event: LoggedEvent) -> pb.WatchEventsResponse:
    return pb.WatchEventsResponse(
        number=event.number,
        time_unix_s=event.time_unix_s,
        kind=event.kind,
        node_id=event.node_id,
        pipeline_id=event.pipeline_id,
        generation_id=event.generation_id,
        attributes=event.attributes,
        plan=event.plan,
    )
