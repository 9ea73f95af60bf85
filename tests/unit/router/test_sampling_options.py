"""What each row of the table of sampling fields means at both doors, for any row there is."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from shuntserve.router.v1 import router_pb2

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING, GenerationKind, ModelRef, PriorityClass
from services.common.sampling_fields import Kind, SamplingField
from services.common.tenants import NOBODY
from services.router.ask import Ask, Drawn, ModelLimits, unasked
from services.router.openai.requests import parse_chat, parse_completion
from services.router.service import ask_from

ASKED = [row for row in SAMPLING.values() if row.asked]
LIMITS = ModelLimits(ModelRef("tiny", "d"), 4096, 1000, (2,), MappingProxyType({}), unasked({}))
DRAWN = Drawn("g", 5, 0)
TOLERANT = replace(NOBODY, priority=PriorityClass.TOLERANT)


def _some(row: SamplingField) -> Any:
    """A value that means something."""
    if row.kind is Kind.NUMBER:
        return next(v for v in (0.25, 0.5) if v != row.neutral)
    return {Kind.INTEGER: 7, Kind.BOOLEAN: True, Kind.IDS: [3, 5], Kind.BIASES: {"3": 0.5}}[
        row.kind
    ]


def _over_http(name: str, value: Any) -> Ask:
    http = {"top_logprobs": "logprobs"}.get(name, name)
    return parse_completion({"model": "tiny", "prompt": [1], http: value}).ask


def _over_grpc(name: str, value: Any) -> Ask:
    if isinstance(value, dict):
        value = {int(key): entry for key, entry in value.items()}
    request = router_pb2.GenerateRequest(
        model="tiny",
        token_ids=router_pb2.PromptIds(ids=[1]),
        sampling=router_pb2.SamplingOptions(**{name: value}),
    )
    return ask_from(request)


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row.name)
def test_a_field_comes_through_both_doors_into_the_request(row: SamplingField) -> None:
    asks = [door(row.name, _some(row)) for door in (_over_http, _over_grpc)]
    assert asks[0].options == asks[1].options != {}
    held = []
    for ask in asks:
        replace(ask, tenant=TOLERANT).check(16)
        sampling = ask.resolve(LIMITS, [1], DRAWN).sampling
        held.append(getattr(sampling, row.name))
    assert held[0] == held[1] != row.neutral
    (value,) = asks[0].options.values()
    assert held[0] == row.rounded(value)


@pytest.mark.parametrize("row", [row for row in ASKED if row.bounds], ids=lambda row: row.name)
def test_what_is_over_its_range_is_refused_by_name_over_http(row: SamplingField) -> None:
    over = row.high + 1 if row.kind is not Kind.BIASES else {"3": row.high + 1}
    with pytest.raises(InvalidArgument, match="must lie in") as refused:
        _over_http(row.name, over).check(16)
    assert refused.value.field == row.name


@pytest.mark.parametrize("row", [row for row in ASKED if row.most], ids=lambda row: row.name)
def test_entries_have_a_limit(row: SamplingField) -> None:
    many = list(range(row.most + 1)) if row.kind is Kind.IDS else dict.fromkeys("", 0)
    if row.kind is Kind.BIASES:
        many = {str(token_id): 0 for token_id in range(row.most + 1)}
    with pytest.raises(InvalidArgument, match=f"at most {row.most}") as refused:
        _over_http(row.name, many).check(16)
    assert refused.value.field == row.name


@pytest.mark.parametrize("row", [row for row in ASKED if row.of_model], ids=lambda row: row.name)
def test_what_is_not_asked_for_is_as_the_model_has_it(row: SamplingField) -> None:
    own = {row.name: 9 if row.kind is Kind.INTEGER else 0.5}
    limits = replace(LIMITS, unasked=unasked(own))
    ask = Ask("tiny", GenerationKind.COMPLETION, (1,))
    held = getattr(ask.resolve(limits, [1], DRAWN).sampling, row.name)
    assert held == own[row.name]
    bare = getattr(ask.resolve(LIMITS, [1], DRAWN).sampling, row.name)
    assert bare == row.neutral


def test_alternatives_are_asked_for_by_two_fields_of_a_chat() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    for more, options in (
        ({}, {}),
        ({"top_logprobs": 0}, {}),
        ({"logprobs": True}, {"top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"top_logprobs": 3}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
    ):
        assert parse_chat({**body, **more}).ask.options == options


@pytest.mark.parametrize("allowed", [(2,), (2, 9)])
def test_allowed_ids_that_are_all_ends_cannot_be_beside_fewest_tokens(
    allowed: tuple[int, ...],
) -> None:
    options = {"allowed_token_ids": allowed, "min_tokens": 2, "stop_token_ids": (9,)}
    ask = Ask("tiny", GenerationKind.COMPLETION, (1,), options=options)
    with pytest.raises(InvalidArgument) as refused:
        ask.resolve(LIMITS, [1], DRAWN)
    assert refused.value.field == "allowed_token_ids"
    other = Ask("tiny", GenerationKind.COMPLETION, (1,), options={**options, "ignore_eos": True})
    if allowed == (2,):  # no end then
        assert other.resolve(LIMITS, [1], DRAWN).sampling.allowed_token_ids == (2,)


@pytest.mark.parametrize("door", [_over_http, _over_grpc])
@pytest.mark.parametrize("priority", [PriorityClass.PROTECTED, PriorityClass.STANDARD])
def test_rounded_blocks_are_for_what_is_tolerant(door: Any, priority: PriorityClass) -> None:
    ask = replace(door("kv_int8", True), tenant=replace(NOBODY, priority=priority))
    with pytest.raises(InvalidArgument, match=f"class tolerant, and this one is {priority}") as no:
        ask.check(16)
    assert no.value.field == "kv_int8"
    replace(ask, tenant=TOLERANT).check(16)
    replace(door("kv_int8", False), tenant=ask.tenant).check(16)
