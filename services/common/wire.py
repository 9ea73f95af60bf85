"""The one place where the generation's values become messages and back.

What comes from the wire is validated here: a value that could never be right raises
InvalidArgument and names its field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from shuntserve.common.v1 import common_pb2

from services.common.errors import InvalidArgument
from services.common.exchange import KvMember, KvSource
from services.common.generation import (
    PLAIN,
    SAMPLING,
    AnswerParts,
    CallForm,
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    Grammar,
    LayerRange,
    ModelRef,
    PriorityClass,
    ResponseTerms,
    Sampling,
    Thinking,
    TokenLogprob,
    TokenSpan,
)

T = TypeVar("T")

MAX_CHOICES = 128
LONGEST_FETCH_S = 600.0
"""That blocks of a KV cache are waited for, or kept."""
MAX_GENERATION_ID_CHARS = 64
MAX_ASK_DIGEST_CHARS = 64
MAX_STOP_STRINGS = 64
MAX_CACHE_SALT_CHARS = 256
MAX_GRAMMAR_CHARS = 1 << 17
MAX_TOOLS = 128
MAX_TOOL_NAME_CHARS = 64
MAX_TENANT_CHARS = 64
MAX_TENANT_WEIGHT = 1000
MAX_DETAILS_BYTES = 4 << 20

_FINISH = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
    FinishReason.GRAMMAR: common_pb2.FINISH_REASON_GRAMMAR,
}
_FINISH_BACK: dict[int, FinishReason] = {number: reason for reason, number in _FINISH.items()}
_KIND = {
    GenerationKind.CHAT: common_pb2.GENERATION_KIND_CHAT,
    GenerationKind.COMPLETION: common_pb2.GENERATION_KIND_COMPLETION,
}
_KIND_BACK: dict[int, GenerationKind] = {number: kind for kind, number in _KIND.items()}
_CALLS = {
    None: common_pb2.CALL_FORM_UNSPECIFIED,
    CallForm.HERMES: common_pb2.CALL_FORM_HERMES,
    CallForm.LLAMA: common_pb2.CALL_FORM_LLAMA,
    CallForm.MISTRAL: common_pb2.CALL_FORM_MISTRAL,
    CallForm.MISTRAL_ARGS: common_pb2.CALL_FORM_MISTRAL_ARGS,
}
_CALLS_BACK: dict[int, CallForm | None] = {number: form for form, number in _CALLS.items()}
_THINKING = {
    Thinking.NONE: common_pb2.THINKING_UNSPECIFIED,
    Thinking.MAY: common_pb2.THINKING_MAY,
    Thinking.BEGUN: common_pb2.THINKING_BEGUN,
}
_THINKING_BACK: dict[int, Thinking] = {number: value for value, number in _THINKING.items()}
_CANCEL = {
    CancelReason.CLIENT: common_pb2.CANCEL_REASON_CLIENT,
    CancelReason.STOP: common_pb2.CANCEL_REASON_STOP,
}
_CANCEL_BACK: dict[int, CancelReason] = {number: reason for reason, number in _CANCEL.items()}

_PRIORITY = {
    PriorityClass.PROTECTED: common_pb2.PRIORITY_CLASS_PROTECTED,
    PriorityClass.STANDARD: common_pb2.PRIORITY_CLASS_STANDARD,
    PriorityClass.TOLERANT: common_pb2.PRIORITY_CLASS_TOLERANT,
}
_PRIORITY_BACK: dict[int, PriorityClass] = {
    common_pb2.PRIORITY_CLASS_UNSPECIFIED: PriorityClass.STANDARD,
    **{number: priority for priority, number in _PRIORITY.items()},
}


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


def cache_salt_from(text: str) -> str:
    """Raises InvalidArgument for what is too long."""
    if len(text) > MAX_CACHE_SALT_CHARS:
        raise InvalidArgument(
            f"a cache salt has at most {MAX_CACHE_SALT_CHARS} characters, not {len(text)}",
            field="cache_salt",
        )
    return text


def tenant_from(text: str) -> str:
    """A tenant's name, or nobody's, which is empty. Raises InvalidArgument."""
    if len(text) > MAX_TENANT_CHARS or not all(
        c.isascii() and (c.isalnum() or c in "-_.") for c in text
    ):
        raise InvalidArgument(
            f"a tenant's name has up to {MAX_TENANT_CHARS} letters, digits, '-', '_', '.'",
            field="tenant",
        )
    return text


def tenant_weight_from(number: int) -> int:
    """A tenant's share against others'. Raises InvalidArgument."""
    if number > MAX_TENANT_WEIGHT:
        raise InvalidArgument(
            f"a tenant's weight is at most {MAX_TENANT_WEIGHT}, not {number}", field="tenant_weight"
        )
    return number or 1


def response_to(terms: ResponseTerms) -> common_pb2.ResponseTerms:
    return common_pb2.ResponseTerms(
        store=terms.store, background=terms.background, details=terms.details
    )


def response_from(message: common_pb2.ResponseTerms) -> ResponseTerms:
    """Raises InvalidArgument for details that are too long."""
    size_bytes = len(message.details.encode())
    if size_bytes > MAX_DETAILS_BYTES:
        raise InvalidArgument(
            f"a response's details have at most {MAX_DETAILS_BYTES} bytes, not {size_bytes}",
            field="response.details",
        )
    return ResponseTerms(message.store, message.background, message.details)


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
        **{name: getattr(sampling, name) for name in SAMPLING},
        grammar=None if sampling.grammar is None else grammar_to(sampling.grammar),
    )


def grammar_to(grammar: Grammar) -> common_pb2.Grammar:
    return common_pb2.Grammar(text=grammar.text, library=grammar.library)


def grammar_from(message: common_pb2.Grammar) -> Grammar:
    """Raises InvalidArgument for one that is empty, or too long."""
    if not 1 <= len(message.text) <= MAX_GRAMMAR_CHARS:
        raise InvalidArgument(
            f"a grammar has 1 to {MAX_GRAMMAR_CHARS} characters, not {len(message.text)}",
            field="grammar",
        )
    if not message.library:
        raise InvalidArgument("a grammar names the library that reads it", field="grammar.library")
    return Grammar(message.text, message.library)


def sampling_from(message: common_pb2.Sampling) -> Sampling:
    """Raises InvalidArgument for what is not finite or out of range."""
    values = {name: row.read(message) for name, row in SAMPLING.items()}
    for name, value in values.items():
        if value is not None:
            SAMPLING[name].check_held(value)
    grammar = grammar_from(message.grammar) if message.HasField("grammar") else None
    return Sampling(**values, grammar=grammar)


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
        cache_salt=request.cache_salt,
        tenant=request.tenant,
        priority=_PRIORITY[request.priority],
        tenant_weight=request.tenant_weight,
        response=None if request.response is None else response_to(request.response),
        parts=None if request.parts == PLAIN else parts_to(request.parts),
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
        cache_salt=cache_salt_from(message.cache_salt),
        tenant=tenant_from(message.tenant),
        priority=_known(_PRIORITY_BACK.get(message.priority), "priority"),
        tenant_weight=tenant_weight_from(message.tenant_weight),
        response=response_from(message.response) if message.HasField("response") else None,
        parts=parts_from(message.parts),
    )


def parts_to(parts: AnswerParts) -> common_pb2.AnswerParts:
    return common_pb2.AnswerParts(
        calls=_CALLS[parts.calls],
        tools=parts.tools,
        named=parts.named,
        thinking=_THINKING[parts.thinking],
    )


def parts_from(message: common_pb2.AnswerParts) -> AnswerParts:
    """Raises InvalidArgument for parts that no router knows, and for too many tools."""
    if message.calls not in _CALLS_BACK:
        raise InvalidArgument("parts.calls has no known value", field="parts.calls")
    if len(message.tools) > MAX_TOOLS or any(
        len(name) > MAX_TOOL_NAME_CHARS for name in message.tools
    ):
        raise InvalidArgument(
            f"at most {MAX_TOOLS} tools, their names of {MAX_TOOL_NAME_CHARS} characters at most",
            field="parts.tools",
        )
    return AnswerParts(
        calls=_CALLS_BACK[message.calls],
        tools=tuple(message.tools),
        named=message.named,
        thinking=_known(_THINKING_BACK.get(message.thinking), "parts.thinking"),
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
        cached_tokens=span.cached_tokens,
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
        cached_tokens=message.cached_tokens,
    )


def spans_to(spans: Iterable[TokenSpan]) -> list[common_pb2.TokenSpan]:
    return [span_to(span) for span in spans]


def spans_from(messages: Iterable[common_pb2.TokenSpan]) -> tuple[TokenSpan, ...]:
    return tuple(map(span_from, messages))


def lengths_to(lengths: Sequence[int]) -> list[common_pb2.ChoiceLength]:
    """Lengths by choice, in order."""
    return [common_pb2.ChoiceLength(choice=i, length=n) for i, n in enumerate(lengths)]


def kv_source_to(source: KvSource) -> common_pb2.KvSource:
    return common_pb2.KvSource(
        formation_id=source.formation_id,
        members=map(kv_member_to, source.members),
        fetch_s=source.fetch_s,
    )


def kv_source_from(message: common_pb2.KvSource) -> KvSource:
    """Raises InvalidArgument and names the field."""
    if not 0 <= message.fetch_s <= LONGEST_FETCH_S:
        raise InvalidArgument(f"within 0 and {LONGEST_FETCH_S:g} seconds", field="fetch_s")
    members = tuple(map(kv_member_from, message.members))
    return KvSource(message.formation_id, members, message.fetch_s)


def kv_member_to(member: KvMember) -> common_pb2.KvMember:
    return common_pb2.KvMember(
        address=member.address,
        incarnation=member.incarnation,
        layers=layers_to(member.layers),
    )


def kv_member_from(message: common_pb2.KvMember) -> KvMember:
    """Raises InvalidArgument for layers that are none."""
    return KvMember(message.address, message.incarnation, layers_from(message.layers))


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
