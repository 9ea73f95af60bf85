from __future__ import annotations

import random
from types import MappingProxyType

import pytest

from services.common import wire
from services.common.errors import InvalidArgument
from services.common.generation import (
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.common.message_sizes import check_generation_fits, request_bytes, token_bytes

LARGEST = (1 << 32) - 1
OVERHEAD_BYTES = 256
"""Of a message whose ids, biases and texts are counted: numbers, names, a model's."""


def request_of(
    *, choices: int = 1, max_tokens: int = 10, top: int | None = None, prompt: int = 1
) -> GenerationRequest:
    sampling = Sampling(max_tokens=max_tokens, top_logprobs=top)
    return GenerationRequest("g", ModelRef("m", "d"), (LARGEST,) * prompt, sampling, choices)


@pytest.mark.parametrize("top", [None, 0, 1, 5, 20])
def test_no_token_takes_more_bytes_than_are_counted(top: int | None) -> None:
    chance = random.Random(top)
    logprob = TokenLogprob(-0.1, tuple((LARGEST, -chance.random()) for _ in range(top or 0)))
    count = 1000
    span = TokenSpan(0, 0, (LARGEST,) * count, () if top is None else (logprob,) * count)
    counted = count * token_bytes(request_of(top=top))
    real = wire.span_to(span).ByteSize()
    assert 0.7 * counted < real <= counted + OVERHEAD_BYTES


def test_no_request_takes_more_bytes_than_are_counted() -> None:
    sampling = Sampling(
        max_tokens=5,
        logit_bias=MappingProxyType({LARGEST - i: 1.0 for i in range(1000)}),
        stop_token_ids=(LARGEST,) * 100,
        eos_token_ids=(LARGEST,) * 10,
    )
    stops = ("東" * 1024,) * 16
    request = GenerationRequest("g", ModelRef("m", "d"), (LARGEST,) * 9000, sampling, 2, stops)
    assert wire.request_to(request).ByteSize() <= request_bytes(request) + OVERHEAD_BYTES


@pytest.mark.parametrize("choices", [1, 2, 16, 128])
@pytest.mark.parametrize("top", [None, 0, 20])
def test_what_fits_is_taken_and_one_token_more_is_refused_by_field(
    choices: int, top: int | None
) -> None:
    limit = 8 << 20
    room = int(limit * 0.75) - request_bytes(request_of())
    most = room // token_bytes(request_of(top=top)) // choices
    fits = request_of(choices=choices, max_tokens=most, top=top)
    check_generation_fits(fits, limit)
    with pytest.raises(InvalidArgument) as refused:
        check_generation_fits(request_of(choices=choices, max_tokens=most + 1, top=top), limit)
    assert refused.value.field == ("choices" if choices > 1 else "max_tokens")


def test_a_prompt_alone_can_be_too_much() -> None:
    with pytest.raises(InvalidArgument):
        check_generation_fits(request_of(max_tokens=1, prompt=1 << 18), 1 << 20)
