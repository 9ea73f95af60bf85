"""What a router says to heads and the controller, as messages and back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common import wire
from services.common.demand import Demand, Shares, TenantDemand
from services.common.errors import InvalidArgument
from services.common.exchange import (
    Accepted,
    Closed,
    CloseReason,
    DeployedModel,
    Frame,
    GenerateCall,
    GenerationState,
    GenerationView,
    Grant,
    HeadLoad,
    LeaveReason,
    Phase,
    PrefixHolder,
    PrefixNews,
    Progress,
    ResumeQuestion,
    Route,
    TenantLoad,
    Tokens,
)

MOST_ENDS = 64
"""Parts of those that run, by which a head of any version tells when they end."""
_PHASES: dict[int, Phase] = {
    engine_pb2.PHASE_QUEUED: Phase.QUEUED,
    engine_pb2.PHASE_PREFILL: Phase.PREFILL,
    engine_pb2.PHASE_DECODE: Phase.DECODE,
}
_CLOSE_REASONS: dict[int, CloseReason] = {
    engine_pb2.CLOSE_REASON_FINISHED: CloseReason.FINISHED,
    engine_pb2.CLOSE_REASON_MOVED: CloseReason.MOVED,
    engine_pb2.CLOSE_REASON_SUPERSEDED: CloseReason.SUPERSEDED,
    engine_pb2.CLOSE_REASON_CANCELLED: CloseReason.CANCELLED,
    engine_pb2.CLOSE_REASON_DIVERGED: CloseReason.DIVERGED,
    engine_pb2.CLOSE_REASON_DISSOLVED: CloseReason.DISSOLVED,
    engine_pb2.CLOSE_REASON_FENCED: CloseReason.FENCED,
    engine_pb2.CLOSE_REASON_HANDED_ON: CloseReason.HANDED_ON,
}
_LEAVE_REASONS = {
    LeaveReason.SILENT: controller_pb2.LEAVE_REASON_SILENT,
    LeaveReason.UNREACHABLE: controller_pb2.LEAVE_REASON_UNREACHABLE,
    LeaveReason.REFUSED: controller_pb2.LEAVE_REASON_REFUSED,
}
_STATES: dict[int, GenerationState] = {
    controller_pb2.GENERATION_STATE_OPEN: GenerationState.OPEN,
    controller_pb2.GENERATION_STATE_FINISHED: GenerationState.FINISHED,
    controller_pb2.GENERATION_STATE_CANCELLED: GenerationState.CANCELLED,
}


def generate_call_to(call: GenerateCall) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(
        request=wire.request_to(call.request),
        epoch=call.epoch,
        formation_id=call.formation_id,
        held=wire.spans_to(call.held),
        kv_source=None if call.kv_source is None else wire.kv_source_to(call.kv_source),
        reader=call.reader,
        hand_on=call.hand_on,
        for_nobody=call.for_nobody,
        prefix_holder=None if call.prefix_holder is None else _holder_to(call.prefix_holder),
        **{"from": wire.lengths_to(call.from_lengths)},
    )


def _holder_to(holder: PrefixHolder) -> engine_pb2.PrefixHolder:
    return engine_pb2.PrefixHolder(
        address=holder.address,
        formation_id=holder.formation_id,
        positions=holder.positions,
    )


def frame_from(message: engine_pb2.GenerateResponse, choices: int) -> Frame:
    """Raises InvalidArgument for a frame that is none."""
    kind = message.WhichOneof("frame")
    if kind == "tokens":
        return Tokens(wire.spans_from(message.tokens.runs), message.tokens.step)
    if kind == "progress":
        phase = _PHASES.get(message.progress.phase)
        if phase is None:
            raise InvalidArgument("phase has no known value", field="phase")
        return Progress(message.progress.step, phase)
    if kind == "accepted":
        accepted = message.accepted
        return Accepted(
            accepted.formation_id,
            accepted.incarnation,
            accepted.numerics_class,
            wire.lengths_from(accepted.lengths, choices),
        )
    if kind == "closed":
        reason = _CLOSE_REASONS.get(message.closed.reason)
        if reason is None:
            raise InvalidArgument("reason has no known value", field="reason")
        return Closed(reason, wire.lengths_from(message.closed.lengths, choices))
    raise InvalidArgument("a frame without content", field="frame")


def prefixes_from(message: engine_pb2.WatchPrefixesResponse) -> PrefixNews:
    """Raises InvalidArgument for blocks without positions."""
    if not message.block_positions:
        raise InvalidArgument("a block has at least 1 position", field="block_positions")
    return PrefixNews(
        message.block_positions,
        message.whole,
        tuple(message.added),
        tuple(message.removed),
        _load_from(message.load) if message.HasField("load") else None,
    )


def _load_from(message: engine_pb2.HeadLoad) -> HeadLoad:
    """Raises InvalidArgument for a batch that holds nothing, and where ends are not in order."""
    if not (message.places and message.step_rows):
        raise InvalidArgument("a head has places and rows", field="load")
    ends = tuple(message.ends)
    if len(ends) == 1 or len(ends) > 1 + MOST_ENDS or any(b < a for a, b in pairwise(ends)):
        raise InvalidArgument(f"ends are none, or 2 to {1 + MOST_ENDS} in order", field="load.ends")
    return HeadLoad(
        message.places,
        message.running,
        message.free_positions,
        message.step_rows,
        message.step_s,
        message.row_s,
        message.lag_s,
        message.answer_tokens,
        tuple(
            TenantLoad(one.tenant, one.lane, max(1, one.weight), one.running, one.queued, one.rows)
            for one in message.tenants
        ),
        ends,
        max(1, message.round_steps),
    )


def question_to(question: ResumeQuestion) -> controller_pb2.ResumeRequest:
    return controller_pb2.ResumeRequest(
        generation_id=question.generation_id,
        last_epoch=question.last_epoch,
        request=None if question.request is None else wire.request_to(question.request),
        held=wire.spans_to(question.held),
        left_formation_id=question.left_formation_id,
        reason=(
            controller_pb2.LEAVE_REASON_UNSPECIFIED
            if question.reason is None
            else _LEAVE_REASONS[question.reason]
        ),
        unheard_s=question.unheard_s,
        handed_on=question.handed_on,
    )


def demand_to(
    router_id: str,
    incarnation: str,
    measured_s: float,
    demands: Mapping[str, Demand],
    tenants: Mapping[str, TenantDemand],
    routers: int,
) -> controller_pb2.ReportDemandRequest:
    return controller_pb2.ReportDemandRequest(
        routers=routers,
        tenants=[
            controller_pb2.TenantDemand(
                tenant=name, requests=one.requests, tokens=one.tokens, share=one.share
            )
            for name, one in tenants.items()
        ],
        router_id=router_id,
        incarnation=incarnation,
        measured_s=measured_s,
        models=[
            controller_pb2.ModelDemand(
                model_id=name,
                requests=demand.requests,
                input_tokens=demand.input_tokens,
                answers=demand.answers,
                output_tokens=demand.output_tokens,
                open=demand.open,
            )
            for name, demand in demands.items()
        ],
    )


def shares_from(message: controller_pb2.ReportDemandResponse) -> Shares:
    """A controller that deals out nothing leaves every router to itself."""
    return Shares(max(1, message.routers), {one.tenant: one.share for one in message.shares})


def grant_from(message: controller_pb2.ResumeResponse) -> Grant:
    head = None if message.finished else route_from(message.head)
    source = wire.kv_source_from(message.kv_source) if message.HasField("kv_source") else None
    return Grant(message.epoch, head, wire.spans_from(message.base), source)


def route_from(message: controller_pb2.Route) -> Route:
    return Route(
        pipeline_id=message.pipeline_id,
        formation_id=message.formation_id,
        incarnation=message.incarnation,
        address=message.address,
        throughput_tokens_per_s=message.throughput_tokens_per_s,
        model=wire.model_from(message.model),
        max_positions=message.max_positions,
        hands_on=message.hands_on,
    )


def deployed_from(message: controller_pb2.DeployedModel) -> DeployedModel:
    return DeployedModel(wire.model_from(message.model), message.unusable, message.asleep)


def view_from(message: controller_pb2.GetGenerationResponse) -> GenerationView:
    """Raises InvalidArgument for a state that is none."""
    state = _STATES.get(message.state)
    if state is None:
        raise InvalidArgument("state has no known value", field="state")
    return GenerationView(
        request=wire.request_from(message.request),
        spans=wire.spans_from(message.runs),
        epoch=message.epoch,
        head=route_from(message.head) if message.HasField("head") else None,
        state=state,
        classes=tuple(message.numerics_classes),
    )
