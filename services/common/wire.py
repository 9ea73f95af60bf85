"""The one place where the generation's values become messages and back.

What comes from the wire is validated here: a value that could never be right raises
InvalidArgument and names its field.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TypeVar

from shuntserve.common.v1 import common_pb2

from services.common.errors import InvalidArgument
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    LayerRange,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)

T = TypeVar("T")

MAX_CHOICES = 128
MAX_GENERATION_ID_CHARS = 64
MAX_ASK_DIGEST_CHARS = 64
MAX_STOP_STRINGS = 64

_FINISH = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
}
_FINISH_BACK: dict[int, FinishReason] = {number: reason for reason, number in _FINISH.items()}
_KIND = {
    GenerationKind.CHAT: common_pb2.GENERATION_KIND_CHAT,
    GenerationKind.COMPLETION: common_pb2.GENERATION_KIND_COMPLETION,
}
_KIND_BACK: dict[int, GenerationKind] = {number: kind for kind, number in _KIND.items()}
_CANCEL = {
    CancelReason.CLIENT: common_pb2.CANCEL_REASON_CLIENT,
    CancelReason.STOP: common_pb2.CANCEL_REASON_STOP,
}
_CANCEL_BACK: dict[int, CancelReason] = {number: reason for reason, number in _CANCEL.items()}


def generation_id_from(text: str) -> str:
    """A generation id as clients may name it: letters, digits, '-', '_' and '.'."""
    allowed = text.isascii() and all(c.isalnum() or c in "-_." for c in text)
    if not text or len(text) > MAX_GENERATION_ID_CHARS or not allowed:
        raise InvalidArgument(
            f"a generation id has 1 to {MAX_GENERATION_ID_CHARS} letters, digits, '-', '_', '.'",
            field="generation_id",
        )
    return text


def ask_digest_from(text: str) -> str:
    """Raises InvalidArgument for what is too long."""
    if len(text) > MAX_ASK_DIGEST_CHARS:
        raise InvalidArgument(
            f"a digest has at most {MAX_ASK_DIGEST_CHARS} characters", field="ask_digest"
        )
    return text


def model_to(model: ModelRef) -> common_pb2.ModelRef:
    return common_pb2.ModelRef(model_id=model.model_id, digest=model.digest)


def model_from(message: common_pb2.ModelRef) -> ModelRef:
    return ModelRef(message.model_id, message.digest)


def layers_to(layers: LayerRange) -> common_pb2.LayerRange:
    return common_pb2.LayerRange(start=layers.start, end=layers.end)


def layers_from(message: common_pb2.LayerRange) -> LayerRange:
    """Raises InvalidArgument for an empty or reversed range."""
    if message.end <= message.start:
        raise InvalidArgument(
            f"layers [{message.start}, {message.end}) hold nothing", field="layers"
        )
    return LayerRange(message.start, message.end)


def finish_to(reason: FinishReason | None) -> common_pb2.FinishReason.ValueType:
    return common_pb2.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH[reason]


def finish_from(number: int) -> FinishReason | None:
    if number == common_pb2.FINISH_REASON_UNSPECIFIED:
        return None
    return _known(_FINISH_BACK.get(number), "finish_reason")


def cancel_reason_to(reason: CancelReason) -> common_pb2.CancelReason.ValueType:
    return _CANCEL[reason]


def cancel_reason_from(number: int) -> CancelReason:
    return _known(_CANCEL_BACK.get(number), "reason")


def sampling_to(sampling: Sampling) -> common_pb2.Sampling:
    return common_pb2.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias,
        top_logprobs=sampling.top_logprobs,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        eos_token_ids=sampling.eos_token_ids,
        seed=sampling.seed,
    )


def sampling_from(message: common_pb2.Sampling) -> Sampling:
    """Raises InvalidArgument for what is not finite or out of range."""
    for field, low, high in (
        ("temperature", 0.0, 100.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("presence_penalty", -100.0, 100.0),
        ("frequency_penalty", -100.0, 100.0),
        ("repetition_penalty", 0.0, 100.0),
    ):
        value = getattr(message, field)
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidArgument(f"{field} must lie in [{low:g}, {high:g}]", field=field)
    for field, value in (
        ("top_p", message.top_p),
        ("repetition_penalty", message.repetition_penalty),
    ):
        if value == 0:
            raise InvalidArgument(f"{field} must be over 0", field=field)
    if message.max_tokens == 0:
        raise InvalidArgument("max_tokens must be at least 1", field="max_tokens")
    if any(not math.isfinite(bias) for bias in message.logit_bias.values()):
        raise InvalidArgument("a logit bias must be finite", field="logit_bias")
    return Sampling(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=MappingProxyType(dict(message.logit_bias)),
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        eos_token_ids=tuple(message.eos_token_ids),
        seed=message.seed,
    )


def request_to(request: GenerationRequest) -> common_pb2.GenerationRequest:
    return common_pb2.GenerationRequest(
        generation_id=request.generation_id,
        model=model_to(request.model),
        prompt_ids=request.prompt_ids,
        choices=request.choices,
        sampling=sampling_to(request.sampling),
        stop_strings=request.stop_strings,
        kind=_KIND[request.kind],
        created_unix_s=request.created_unix_s,
        include_usage=request.include_usage,
        numerics_class=request.numerics_class,
        ask_digest=request.ask_digest,
    )


def request_from(message: common_pb2.GenerationRequest) -> GenerationRequest:
    """Raises InvalidArgument for what no router would have sent."""
    if not message.prompt_ids:
        raise InvalidArgument("the prompt has no tokens", field="prompt_ids")
    if not 1 <= message.choices <= MAX_CHOICES:
        raise InvalidArgument(f"choices must lie in [1, {MAX_CHOICES}]", field="choices")
    if len(message.stop_strings) > MAX_STOP_STRINGS:
        raise InvalidArgument(f"at most {MAX_STOP_STRINGS} stop strings", field="stop_strings")
    return GenerationRequest(
        generation_id=generation_id_from(message.generation_id),
        model=model_from(message.model),
        prompt_ids=tuple(message.prompt_ids),
        sampling=sampling_from(message.sampling),
        choices=message.choices,
        stop_strings=tuple(message.stop_strings),
        kind=_known(_KIND_BACK.get(message.kind), "kind"),
        created_unix_s=message.created_unix_s,
        include_usage=message.include_usage,
        numerics_class=message.numerics_class,
        ask_digest=ask_digest_from(message.ask_digest),
    )


def logprob_to(logprob: TokenLogprob) -> common_pb2.TokenLogprob:
    return common_pb2.TokenLogprob(
        logprob=logprob.logprob,
        top=[common_pb2.TopLogprob(token_id=i, logprob=value) for i, value in logprob.top],
    )


def logprob_from(message: common_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.logprob, tuple((t.token_id, t.logprob) for t in message.top))


def span_to(span: TokenSpan) -> common_pb2.TokenSpan:
    return common_pb2.TokenSpan(
        choice=span.choice,
        start=span.start,
        ids=span.ids,
        logprobs=[logprob_to(logprob) for logprob in span.logprobs],
        finish_reason=finish_to(span.finish_reason),
    )


def span_from(message: common_pb2.TokenSpan) -> TokenSpan:
    """Raises InvalidArgument when logprobs are there, but not one an id."""
    if message.logprobs and len(message.logprobs) != len(message.ids):
        raise InvalidArgument(
            f"{len(message.logprobs)} logprobs for {len(message.ids)} ids", field="logprobs"
        )
    return TokenSpan(
        choice=message.choice,
        start=message.start,
        ids=tuple(message.ids),
        logprobs=tuple(map(logprob_from, message.logprobs)) if message.logprobs else (),
        finish_reason=finish_from(message.finish_reason) if message.finish_reason else None,
    )


def spans_to(spans: Iterable[TokenSpan]) -> list[common_pb2.TokenSpan]:
    return [span_to(span) for span in spans]


def spans_from(messages: Iterable[common_pb2.TokenSpan]) -> tuple[TokenSpan, ...]:
    return tuple(map(span_from, messages))


def lengths_to(lengths: Sequence[int]) -> list[common_pb2.ChoiceLength]:
    """Lengths by choice, in order."""
    return [common_pb2.ChoiceLength(choice=i, length=n) for i, n in enumerate(lengths)]


def lengths_from(messages: Iterable[common_pb2.ChoiceLength], choices: int) -> tuple[int, ...]:
    """Lengths by choice, 0 for those not named; raises InvalidArgument for an unknown choice."""
    lengths = [0] * choices
    for message in messages:
        if message.choice >= choices:
            raise InvalidArgument(f"choice {message.choice} of {choices}", field="choice")
        lengths[message.choice] = message.length
    return tuple(lengths)


def _known(value: T | None, field: str) -> T:
    if value is None:
        raise InvalidArgument(f"{field} has no known value", field=field)
    return value
