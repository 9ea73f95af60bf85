from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shuntserve.common.v1 import common_pb2

from services.common import wire
from services.common.errors import InvalidArgument
from services.common.exchange import KvMember, KvSource
from services.common.generation import (
    AnswerParts,
    CallForm,
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    LayerRange,
    ModelRef,
    PriorityClass,
    ResponseTerms,
    Thinking,
    TokenLogprob,
    TokenSpan,
)
from tests.samplings import samplings

IDS = st.integers(0, 2**32 - 1)
LOGPROBS = st.builds(
    TokenLogprob,
    st.floats(-50, 0, width=32),
    st.lists(st.tuples(IDS, st.floats(-50, 0, width=32)), max_size=3).map(tuple),
)
SAMPLINGS = samplings(32, held=True)
REQUESTS = st.builds(
    GenerationRequest,
    generation_id=st.text("abcXYZ019-_.", min_size=1, max_size=64),
    model=st.builds(ModelRef, st.text(max_size=20), st.text(max_size=20)),
    prompt_ids=st.lists(IDS, min_size=1, max_size=20).map(tuple),
    sampling=SAMPLINGS,
    choices=st.integers(1, wire.MAX_CHOICES),
    stop_strings=st.lists(st.text(max_size=9), max_size=4).map(tuple),
    kind=st.sampled_from(GenerationKind),
    created_unix_s=st.integers(-(2**63), 2**63 - 1),
    include_usage=st.booleans(),
    numerics_class=st.text(max_size=9),
    cache_salt=st.text(max_size=wire.MAX_CACHE_SALT_CHARS),
    tenant=st.text("abzAZ059-_.", max_size=wire.MAX_TENANT_CHARS),
    priority=st.sampled_from(PriorityClass),
    parts=st.builds(
        AnswerParts,
        calls=st.none() | st.sampled_from(CallForm),
        tools=st.lists(st.text(max_size=wire.MAX_TOOL_NAME_CHARS), max_size=3).map(tuple),
        named=st.booleans(),
        thinking=st.sampled_from(Thinking),
    ),
    response=st.none() | st.builds(ResponseTerms, st.booleans(), st.booleans(), st.text()),
)


@given(REQUESTS)
def test_every_field_of_a_request_survives_the_wire(request: GenerationRequest) -> None:
    data = wire.request_to(request).SerializeToString()
    assert wire.request_from(common_pb2.GenerationRequest.FromString(data)) == request


@given(st.integers(0, 9), IDS, st.lists(st.tuples(IDS, LOGPROBS), max_size=5), st.booleans(), IDS)
def test_a_run_of_tokens_survives_the_wire(
    choice: int, start: int, tokens: list[tuple[int, TokenLogprob]], ended: bool, cached: int
) -> None:
    span = TokenSpan(
        choice,
        start,
        tuple(token for token, _ in tokens),
        tuple(logprob for _, logprob in tokens),
        FinishReason.LENGTH if ended else None,
        cached,
    )
    data = wire.span_to(span).SerializeToString()
    assert wire.span_from(common_pb2.TokenSpan.FromString(data)) == span


@pytest.mark.parametrize("reason", CancelReason)
def test_a_cancel_reason_survives_the_wire(reason: CancelReason) -> None:
    assert wire.cancel_reason_from(wire.cancel_reason_to(reason)) is reason


def _request(**changes: Any) -> common_pb2.GenerationRequest:
    message = common_pb2.GenerationRequest(
        generation_id="g",
        prompt_ids=[1],
        choices=1,
        kind=common_pb2.GENERATION_KIND_CHAT,
        sampling=common_pb2.Sampling(max_tokens=1, top_p=1, repetition_penalty=1),
    )
    sampling = changes.pop("sampling", {})
    message.MergeFrom(common_pb2.GenerationRequest(**changes))
    for name, value in sampling.items():
        setattr(message.sampling, name, value)
    return message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sampling": {"temperature": math.nan}}, "temperature"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"temperature": math.inf}}, "temperature"),
        ({"sampling": {"top_p": 0}}, "top_p"),
        ({"sampling": {"top_p": 1.5}}, "top_p"),
        ({"sampling": {"min_p": -0.5}}, "min_p"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens"),
        ({"sampling": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"sampling": {"top_logprobs": 21}}, "top_logprobs"),
        ({"sampling": {"seed": 0, "min_p": 1}}, "min_p"),
        ({"choices": 10**9}, "choices"),
        ({"generation_id": "../x"}, "generation_id"),
        ({"generation_id": "x" * 65}, "generation_id"),
        ({"kind": 99}, "kind"),
        ({"stop_strings": ["x"] * 65}, "stop_strings"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"tenant": "x" * 65}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"priority": 9}, "priority"),
        ({"parts": {"calls": 99}}, "parts.calls"),
        ({"parts": {"thinking": 99}}, "parts.thinking"),
        ({"parts": {"tools": ["x"] * 129}}, "parts.tools"),
        ({"parts": {"tools": ["x" * 65]}}, "parts.tools"),
        (
            {"response": common_pb2.ResponseTerms(details="x" * (wire.MAX_DETAILS_BYTES + 1))},
            "response.details",
        ),
    ],
)
def test_a_request_that_can_never_work_names_its_field(changes: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as failed:
        wire.request_from(_request(**changes))
    assert failed.value.field == field


def test_a_request_without_a_prompt_is_refused() -> None:
    message = _request()
    del message.prompt_ids[:]
    with pytest.raises(InvalidArgument, match="no tokens"):
        wire.request_from(message)


def test_an_empty_layer_range_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        wire.layers_from(common_pb2.LayerRange(start=3, end=3))
    assert wire.layers_from(wire.layers_to(LayerRange(0, 18))) == LayerRange(0, 18)


def test_lengths_of_unnamed_choices_are_zero_and_unknown_choices_are_refused() -> None:
    messages = [common_pb2.ChoiceLength(choice=1, length=5)]
    assert wire.lengths_from(messages, 3) == (0, 5, 0)
    with pytest.raises(InvalidArgument):
        wire.lengths_from(messages, 1)
    assert wire.lengths_from(wire.lengths_to((4, 0, 2)), 3) == (4, 0, 2)


def test_logprobs_come_one_an_id_or_not_at_all() -> None:
    message = common_pb2.TokenSpan(ids=[1, 2], logprobs=[common_pb2.TokenLogprob(logprob=-1)])
    with pytest.raises(InvalidArgument):
        wire.span_from(message)


def test_where_blocks_are_kept_survives_the_wire() -> None:
    members = (
        KvMember("10.0.0.1:7", "i0", LayerRange(0, 3)),
        KvMember("10.0.0.2:7", "i1", LayerRange(3, 5)),
    )
    for source in (KvSource("f", members), KvSource("f", ()), KvSource("f", members, 12.5)):
        message = wire.kv_source_to(source)
        assert wire.kv_source_from(type(message).FromString(message.SerializeToString())) == source
    with pytest.raises(InvalidArgument, match="hold nothing"):
        wire.kv_source_from(common_pb2.KvSource(members=[common_pb2.KvMember()]))
    for seconds in (-1.0, 601.0, float("nan")):
        with pytest.raises(InvalidArgument) as refused:
            wire.kv_source_from(common_pb2.KvSource(fetch_s=seconds))
        assert refused.value.field == "fetch_s"
