from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common import wire as common_wire
from services.common.errors import InvalidArgument
from services.common.exchange import (
    Accepted,
    Checkpoint,
    CheckpointRefusal,
    Closed,
    CloseReason,
    GenerateCall,
    Phase,
    PrefixHolder,
    Progress,
    Tokens,
)
from services.common.generation import (
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.engine import wire
from services.engine.backend import Batch, Hidden, Sampled, SequenceOpen, SequenceStep
from services.router.wire import generate_call_to
from tests.samplings import samplings

BATCH = Batch(
    (SequenceStep(0, 5, 3, (7, 3), True, (77, 5)), SequenceStep(2, 0, 2, (4,), False)),
    (SequenceOpen(2, Sampling(9), 1, (5, 6), (8,)),),
    (9, 11),
)


@given(samplings(32, held=True), st.sampled_from(["bf16", "fp32"]))
def test_a_batch_crosses_with_every_sampling_field(sampling: Sampling, dtype: str) -> None:
    batch = replace(BATCH, opens=(replace(BATCH.opens[0], sampling=sampling),))
    message = wire.batch_to("f", 12, batch, ["00-a"])
    hidden = Hidden(dtype, 5, b"abcdef")  # type: ignore[arg-type]
    wire.put_hidden(message, hidden)
    arrived = engine_pb2.ForwardRequest.FromString(message.SerializeToString())
    assert wire.batch_from(arrived) == (batch, hidden)
    assert (arrived.formation_id, arrived.step, list(arrived.traceparents)) == ("f", 12, ["00-a"])


def test_a_batch_without_an_element_type_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        wire.batch_from(wire.batch_to("f", 1, BATCH, []))
    assert refused.value.field == "dtype"


def test_sampled_tokens_cross() -> None:
    tokens = (
        Sampled(1, 4, 77),
        Sampled(1, 5, 7),
        Sampled(2, 0, 5, TokenLogprob(-0.5, ((5, -0.5), (6, -1.5)))),
    )
    message = wire.sampled_to("f", 3, tokens)
    arrived = engine_pb2.ForwardResponse.FromString(message.SerializeToString())
    assert wire.sampled_from(arrived) == tokens
    assert (arrived.formation_id, arrived.step) == ("f", 3)


def test_a_call_is_read_whole() -> None:
    asked = GenerationRequest("g", ModelRef("m", "d"), (1, 2), Sampling(9), choices=2)
    message = engine_pb2.GenerateRequest(
        request=common_wire.request_to(asked), epoch=3, formation_id="f"
    )
    message.held.append(common_wire.span_to(TokenSpan(1, 0, (5, 6))))
    getattr(message, "from").extend(common_wire.lengths_to((0, 2)))
    call = wire.call_from(message)
    assert (call.request, call.epoch, call.formation_id) == (asked, 3, "f")
    assert call.held == (TokenSpan(1, 0, (5, 6)),)
    assert call.from_lengths == (0, 2)
    assert call.prefix_holder is None
    message.epoch = 1
    for field, value in (("epoch", 0), ("formation_id", "")):
        broken = engine_pb2.GenerateRequest()
        broken.CopyFrom(message)
        setattr(broken, field, value)
        with pytest.raises(InvalidArgument) as refused:
            wire.call_from(broken)
        assert refused.value.field == field


def test_who_holds_a_prompts_beginning_is_read_as_a_router_says_it() -> None:
    asked = GenerationRequest("g", ModelRef("m", "d"), (1, 2), Sampling(9))
    holder = PrefixHolder("a:1", "other", 640)
    call = GenerateCall(asked, 1, "f", from_lengths=(0,), prefix_holder=holder)
    message = generate_call_to(call)
    assert wire.call_from(message) == call
    for broken in (replace(holder, address=""), replace(holder, formation_id="")):
        with pytest.raises(InvalidArgument) as refused:
            wire.call_from(generate_call_to(replace(call, prefix_holder=broken)))
        assert refused.value.field == "prefix_holder"
    with pytest.raises(InvalidArgument) as refused:
        wire.call_from(generate_call_to(replace(call, epoch=2)))
    assert refused.value.field == "prefix_holder"


def test_every_frame_has_its_message() -> None:
    accepted = wire.frame_to(Accepted("f", "i", "c", (1, 2))).accepted
    assert (accepted.formation_id, accepted.incarnation) == ("f", "i")
    assert accepted.numerics_class == "c"
    assert [(n.choice, n.length) for n in accepted.lengths] == [(0, 1), (1, 2)]
    tokens = wire.frame_to(Tokens((TokenSpan(1, 4, (8, 9)),), 6)).tokens
    assert (tokens.step, list(tokens.runs[0].ids), tokens.runs[0].start) == (6, [8, 9], 4)
    for phase in Phase:
        progress = wire.frame_to(Progress(5, phase)).progress
        assert engine_pb2.Phase.Name(progress.phase) == f"PHASE_{phase.name}"
    for reason in CloseReason:
        closed = wire.frame_to(Closed(reason, (3,))).closed
        assert engine_pb2.CloseReason.Name(closed.reason) == f"CLOSE_REASON_{reason.name}"
        assert closed.lengths[0].length == 3


def test_checkpoints_and_their_results_cross() -> None:
    asked = GenerationRequest("g", ModelRef("m", "d"), (1,), Sampling(9))
    message = wire.checkpoint_to(
        Checkpoint("g", 2, "i", "f", asked, (TokenSpan(0, 3, (4,)),), sealed=True)
    )
    assert (message.generation_id, message.epoch, message.incarnation) == ("g", 2, "i")
    assert (message.formation_id, message.sealed) == ("f", True)
    assert common_wire.request_from(message.request) == asked
    assert not wire.checkpoint_to(Checkpoint("g", 2, "i", "f", None, ())).HasField("request")
    assert message.moved_by == controller_pb2.MOVED_BY_UNSPECIFIED
    moved = wire.checkpoint_to(Checkpoint("g", 2, "i", "f", None, (), moved_by="kv"))
    assert moved.moved_by == controller_pb2.MOVED_BY_KV
    for refusal in (None, *CheckpointRefusal):
        name = "UNSPECIFIED" if refusal is None else refusal.name
        number = controller_pb2.CheckpointRefusal.Value(f"CHECKPOINT_REFUSAL_{name}")
        answer = controller_pb2.CheckpointResult(generation_id="g", epoch=2, refusal=number)
        answer.lengths.extend(common_wire.lengths_to((3, 0)))
        result = wire.result_from(answer)
        assert (result.generation_id, result.epoch, result.lengths) == ("g", 2, (3, 0))
        assert result.refusal is refusal
