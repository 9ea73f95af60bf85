"""Batches, frames and checkpoints as messages, and back."""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common import wire
from services.common.errors import InvalidArgument
from services.common.exchange import (
    Accepted,
    Checkpoint,
    CheckpointRefusal,
    CheckpointResult,
    CloseReason,
    Frame,
    GenerateCall,
    HeadLoad,
    Left,
    Phase,
    PrefixHolder,
    PrefixNews,
    Progress,
    Tokens,
)
from services.common.nodes import StageHolding
from services.engine.backend import Batch, Hidden, Sampled, SequenceOpen, SequenceStep

_PHASE = {
    Phase.QUEUED: engine_pb2.PHASE_QUEUED,
    Phase.PREFILL: engine_pb2.PHASE_PREFILL,
    Phase.DECODE: engine_pb2.PHASE_DECODE,
}
_CLOSE = {
    CloseReason.FINISHED: engine_pb2.CLOSE_REASON_FINISHED,
    CloseReason.MOVED: engine_pb2.CLOSE_REASON_MOVED,
    CloseReason.HANDED_ON: engine_pb2.CLOSE_REASON_HANDED_ON,
    CloseReason.SUPERSEDED: engine_pb2.CLOSE_REASON_SUPERSEDED,
    CloseReason.CANCELLED: engine_pb2.CLOSE_REASON_CANCELLED,
    CloseReason.DIVERGED: engine_pb2.CLOSE_REASON_DIVERGED,
    CloseReason.DISSOLVED: engine_pb2.CLOSE_REASON_DISSOLVED,
    CloseReason.FENCED: engine_pb2.CLOSE_REASON_FENCED,
}
_REFUSAL: dict[int, CheckpointRefusal] = {
    controller_pb2.CHECKPOINT_REFUSAL_STALE_EPOCH: CheckpointRefusal.STALE_EPOCH,
    controller_pb2.CHECKPOINT_REFUSAL_DIVERGED: CheckpointRefusal.DIVERGED,
    controller_pb2.CHECKPOINT_REFUSAL_ENDED: CheckpointRefusal.ENDED,
    controller_pb2.CHECKPOINT_REFUSAL_UNKNOWN_FORMATION: CheckpointRefusal.UNKNOWN_FORMATION,
}
_MOVED_BY = {
    "": controller_pb2.MOVED_BY_UNSPECIFIED,
    "replay": controller_pb2.MOVED_BY_REPLAY,
    "kv": controller_pb2.MOVED_BY_KV,
}
_DTYPE = {"bf16": engine_pb2.HIDDEN_DTYPE_BF16, "fp32": engine_pb2.HIDDEN_DTYPE_FP32}


def batch_to(
    formation_id: str, step: int, batch: Batch, traceparents: Sequence[str]
) -> engine_pb2.ForwardRequest:
    """A step's batch without its hidden states."""
    return engine_pb2.ForwardRequest(
        formation_id=formation_id,
        step=step,
        opens=[
            engine_pb2.SequenceOpen(
                slot=opened.slot,
                sampling=wire.sampling_to(opened.sampling),
                choice=opened.choice,
                prompt_ids=opened.prompt_ids,
                output_ids=opened.output_ids,
            )
            for opened in batch.opens
        ],
        steps=[
            engine_pb2.SequenceStep(
                slot=s.slot,
                start=s.start,
                count=s.count,
                block_table=s.block_table,
                sample=s.sample,
                drafts=s.drafts,
            )
            for s in batch.steps
        ],
        closes=batch.closes,
        traceparents=traceparents,
    )


def put_hidden(message: engine_pb2.ForwardRequest, hidden: Hidden) -> None:
    """Sets the hidden states that the next stage goes on from."""
    message.hidden = hidden.data
    message.dtype = _DTYPE[hidden.dtype]


def batch_from(message: engine_pb2.ForwardRequest) -> tuple[Batch, Hidden]:
    """Raises InvalidArgument; sizes and ids are the backend's to check."""
    batch = Batch(
        tuple(
            SequenceStep(s.slot, s.start, s.count, tuple(s.block_table), s.sample, tuple(s.drafts))
            for s in message.steps
        ),
        tuple(
            SequenceOpen(
                opened.slot,
                wire.sampling_from(opened.sampling),
                opened.choice,
                tuple(opened.prompt_ids),
                tuple(opened.output_ids),
            )
            for opened in message.opens
        ),
        tuple(message.closes),
    )
    if message.dtype == engine_pb2.HIDDEN_DTYPE_BF16:
        return batch, Hidden("bf16", batch.rows, message.hidden)
    if message.dtype == engine_pb2.HIDDEN_DTYPE_FP32:
        return batch, Hidden("fp32", batch.rows, message.hidden)
    raise InvalidArgument("dtype must be bf16 or fp32", field="dtype")


def sampled_to(
    formation_id: str, step: int, sampled: Sequence[Sampled]
) -> engine_pb2.ForwardResponse:
    return engine_pb2.ForwardResponse(
        formation_id=formation_id,
        step=step,
        tokens=[
            engine_pb2.SampledToken(
                slot=token.slot,
                position=token.position,
                token_id=token.token_id,
                logprob=None if token.logprob is None else wire.logprob_to(token.logprob),
                stuck=token.stuck,
            )
            for token in sampled
        ],
    )


def sampled_from(message: engine_pb2.ForwardResponse) -> tuple[Sampled, ...]:
    return tuple(
        Sampled(
            token.slot,
            token.position,
            token.token_id,
            wire.logprob_from(token.logprob) if token.HasField("logprob") else None,
            token.stuck,
        )
        for token in message.tokens
    )


def call_from(message: engine_pb2.GenerateRequest) -> GenerateCall:
    """Raises InvalidArgument and names the field."""
    if message.epoch < 1:
        raise InvalidArgument("an epoch is at least 1", field="epoch")
    if not message.formation_id:
        raise InvalidArgument("the formation must be named", field="formation_id")
    holder = None
    if message.HasField("prefix_holder"):
        holder = _holder_from(message.prefix_holder)
        if message.epoch != 1:
            raise InvalidArgument("a prefix is fetched at epoch 1", field="prefix_holder")
    request = wire.request_from(message.request)
    return GenerateCall(
        request,
        message.epoch,
        message.formation_id,
        wire.spans_from(message.held),
        wire.lengths_from(getattr(message, "from"), request.choices),
        wire.kv_source_from(message.kv_source) if message.HasField("kv_source") else None,
        message.reader,
        message.hand_on,
        message.for_nobody,
        holder,
    )


def _holder_from(message: engine_pb2.PrefixHolder) -> PrefixHolder:
    """Raises InvalidArgument for one that is not reached."""
    if not (message.address and message.formation_id):
        raise InvalidArgument("who holds a prefix has a name", field="prefix_holder")
    return PrefixHolder(message.address, message.formation_id, message.positions)


def left_from(message: engine_pb2.DetachRequest | engine_pb2.Detached) -> Left:
    """Raises InvalidArgument for a generation's name that is none."""
    generation_id = wire.generation_id_from(message.generation_id)
    return Left(generation_id, message.epoch, message.reader, message.resumable)


def frame_to(frame: Frame) -> engine_pb2.GenerateResponse:
    if isinstance(frame, Tokens):
        tokens = engine_pb2.Tokens(runs=wire.spans_to(frame.spans), step=frame.step)
        return engine_pb2.GenerateResponse(tokens=tokens)
    if isinstance(frame, Progress):
        progress = engine_pb2.Progress(step=frame.step, phase=_PHASE[frame.phase])
        return engine_pb2.GenerateResponse(progress=progress)
    lengths = wire.lengths_to(frame.lengths)
    if isinstance(frame, Accepted):
        accepted = engine_pb2.Accepted(
            formation_id=frame.formation_id,
            incarnation=frame.incarnation,
            numerics_class=frame.numerics_class,
            lengths=lengths,
        )
        return engine_pb2.GenerateResponse(accepted=accepted)
    closed = engine_pb2.Closed(reason=_CLOSE[frame.reason], lengths=lengths)
    return engine_pb2.GenerateResponse(closed=closed)


def prefixes_to(news: PrefixNews) -> engine_pb2.WatchPrefixesResponse:
    return engine_pb2.WatchPrefixesResponse(
        block_positions=news.block_positions,
        whole=news.whole,
        added=news.added,
        removed=news.removed,
        load=None if news.load is None else _load_to(news.load),
    )


def _load_to(load: HeadLoad) -> engine_pb2.HeadLoad:
    return engine_pb2.HeadLoad(
        places=load.places,
        running=load.running,
        free_positions=load.free_positions,
        step_rows=load.step_rows,
        step_s=load.step_s,
        row_s=load.row_s,
        lag_s=load.lag_s,
        answer_tokens=load.answer_tokens,
        tenants=[
            engine_pb2.TenantLoad(
                tenant=one.tenant,
                lane=one.lane,
                weight=one.weight,
                running=one.running,
                queued=one.queued,
                rows=one.rows,
            )
            for one in load.tenants
        ],
        ends=load.ends,
        round_steps=load.round_steps,
    )


def checkpoint_to(checkpoint: Checkpoint) -> controller_pb2.Checkpoint:
    request = checkpoint.request
    return controller_pb2.Checkpoint(
        generation_id=checkpoint.generation_id,
        epoch=checkpoint.epoch,
        incarnation=checkpoint.incarnation,
        formation_id=checkpoint.formation_id,
        request=None if request is None else wire.request_to(request),
        runs=wire.spans_to(checkpoint.spans),
        sealed=checkpoint.sealed,
        unread=checkpoint.unread,
        moved_by=_MOVED_BY[checkpoint.moved_by],
        inexact=checkpoint.inexact,
    )


def result_from(message: controller_pb2.CheckpointResult) -> CheckpointResult:
    """Lengths by choice, 0 for those not named."""
    choices = max((entry.choice + 1 for entry in message.lengths), default=0)
    return CheckpointResult(
        message.generation_id,
        message.epoch,
        wire.lengths_from(message.lengths, choices),
        _REFUSAL.get(message.refusal),
    )


def holding_to(holding: StageHolding) -> engine_pb2.StageHolding:
    return engine_pb2.StageHolding(
        model=wire.model_to(holding.model),
        stage=engine_pb2.StageSpec(
            layers=wire.layers_to(holding.spec.layers), tp_degree=holding.spec.tp_degree
        ),
        held=holding.held,
        cached=holding.cached,
        kv_blocks=holding.kv_blocks,
        numerics_class=holding.numerics_class,
    )
