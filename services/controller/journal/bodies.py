"""Records as the journal's file holds them: a code for the kind, and a message of its own.

Neither an API nor the name of a class stands in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

from shuntserve.journal.v3 import journal_pb2 as pb

from services.common.errors import DataLoss
from services.common.exchange import GenerationState, GenerationView
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
    ModelRef,
    PriorityClass,
    ResponseTerms,
    Sampling,
    Thinking,
    TokenLogprob,
    TokenSpan,
)
from services.common.sampling_fields import Kind
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Kept,
    Record,
    Sealed,
)

T = TypeVar("T")

KINDS: Mapping[type[Any], int] = {
    HeadBound: 1,
    Granted: 2,
    IdsAppended: 3,
    Sealed: 4,
    Ended: 5,
    Inexact: 6,
}
"""Codes of kinds. Like the codes below they stand in files: none is changed or given again."""
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.GRAMMAR: pb.FINISH_REASON_GRAMMAR,
}
CANCEL_REASONS = {
    CancelReason.CLIENT: pb.CANCEL_REASON_CLIENT,
    CancelReason.STOP: pb.CANCEL_REASON_STOP,
}
GENERATION_KINDS = {
    GenerationKind.CHAT: pb.GENERATION_KIND_CHAT,
    GenerationKind.COMPLETION: pb.GENERATION_KIND_COMPLETION,
}
CALL_FORMS = {
    None: pb.CALL_FORM_UNSPECIFIED,
    CallForm.HERMES: pb.CALL_FORM_HERMES,
    CallForm.LLAMA: pb.CALL_FORM_LLAMA,
    CallForm.MISTRAL: pb.CALL_FORM_MISTRAL,
    CallForm.MISTRAL_ARGS: pb.CALL_FORM_MISTRAL_ARGS,
}
THINKING = {
    Thinking.NONE: pb.THINKING_UNSPECIFIED,
    Thinking.MAY: pb.THINKING_MAY,
    Thinking.BEGUN: pb.THINKING_BEGUN,
}
PRIORITY_CLASSES = {
    PriorityClass.STANDARD: pb.PRIORITY_CLASS_UNSPECIFIED,
    PriorityClass.PROTECTED: pb.PRIORITY_CLASS_PROTECTED,
    PriorityClass.TOLERANT: pb.PRIORITY_CLASS_TOLERANT,
}
_AS_THEY_ARE = {name: row for name, row in SAMPLING.items() if row.kind is not Kind.BIASES}
"""Sampling fields that are one field of the file, of the same name."""
_IDS_APPENDED = KINDS[IdsAppended]


def stored(record: Record) -> tuple[int, bytes]:
    """The code of a record's kind, and its body."""
    match record:
        case IdsAppended(_, span):  # by far the most
            return _IDS_APPENDED, pb.IdsAppended(spans=(_span_to(span),)).SerializeToString()
        case HeadBound(_, incarnation, formation_id, pipeline_id, request):
            body: Any = pb.HeadBound(
                incarnation=incarnation,
                formation_id=formation_id,
                pipeline_id=pipeline_id,
                request=_request_to(request),
            )
        case Granted(_, epoch, incarnation, formation_id, pipeline_id, request, spans, numerics):
            body = pb.Granted(
                epoch=epoch,
                incarnation=incarnation,
                formation_id=formation_id,
                pipeline_id=pipeline_id,
                request=_request_to(request),
                spans=map(_span_to, spans),
                numerics_class=numerics,
            )
        case Sealed(_, epoch):
            body = pb.Sealed(epoch=epoch)
        case Inexact(_, lengths):
            body = pb.Inexact(lengths=lengths)
        case Ended(_, choice, reason, length):
            body = pb.Ended(choice=choice, reason=CANCEL_REASONS[reason], length=length)
        case Forgotten() | Kept():
            raise TypeError("what is forgotten, or kept elsewhere, has no row among records")
    return KINDS[type(record)], body.SerializeToString()


def stored_together(spans: Iterable[TokenSpan]) -> tuple[int, bytes]:
    """Appends of several choices as one row."""
    return _IDS_APPENDED, pb.IdsAppended(spans=map(_span_to, spans)).SerializeToString()


def records_from(generation_id: str, kind: int, body: bytes) -> Iterator[Record]:
    """What a row says: a record, or one a choice where appends were joined. Raises DataLoss or
    DecodeError for what `stored` never said; what an API would take today is not asked."""
    said: Any
    if kind == _IDS_APPENDED:
        for span in pb.IdsAppended.FromString(body).spans:
            yield IdsAppended(generation_id, _span_from(span))
    elif kind == KINDS[HeadBound]:
        said = pb.HeadBound.FromString(body)
        head = (said.incarnation, said.formation_id, said.pipeline_id)
        yield HeadBound(generation_id, *head, _request_from(said.request))
    elif kind == KINDS[Granted]:
        said = pb.Granted.FromString(body)
        head = (said.incarnation, said.formation_id, said.pipeline_id)
        asked, spans = _request_from(said.request), tuple(map(_span_from, said.spans))
        yield Granted(generation_id, said.epoch, *head, asked, spans, said.numerics_class)
    elif kind == KINDS[Sealed]:
        yield Sealed(generation_id, pb.Sealed.FromString(body).epoch)
    elif kind == KINDS[Inexact]:
        yield Inexact(generation_id, tuple(pb.Inexact.FromString(body).lengths))
    elif kind == KINDS[Ended]:
        said = pb.Ended.FromString(body)
        yield Ended(
            generation_id,
            said.choice if said.HasField("choice") else None,
            value_of(CANCEL_REASONS, said.reason, "cancel reason"),
            said.length if said.HasField("length") else None,
        )
    else:
        raise DataLoss(f"{kind!r} is no kind of record")


def joined(bodies: Iterable[bytes]) -> bytes:
    """One body of many appends, a span a choice."""
    spans = [span for body in bodies for span in pb.IdsAppended.FromString(body).spans]
    wholes: dict[int, pb.Span] = {}
    for span in sorted(spans, key=_place):
        whole = wholes.setdefault(span.choice, span)
        if whole is not span:
            whole.ids.extend(span.ids)
            whole.logprobs.extend(span.logprobs)
            whole.top_counts.extend(span.top_counts)
            whole.top_ids.extend(span.top_ids)
            whole.top_logprobs.extend(span.top_logprobs)
            whole.finish_reason = whole.finish_reason or span.finish_reason
            whole.cached_tokens = whole.cached_tokens or span.cached_tokens
    return pb.IdsAppended(spans=wholes.values()).SerializeToString()


def kept_to(view: GenerationView) -> bytes:
    """The body of a generation that is kept."""
    return pb.Kept(
        request=_request_to(view.request),
        spans=map(_span_to, view.spans),
        epoch=view.epoch,
        numerics_classes=view.classes,
        cancelled=view.state is GenerationState.CANCELLED,
    ).SerializeToString()


def kept_from(body: bytes) -> GenerationView:
    """Raises DataLoss or DecodeError for what `kept_to` never said."""
    said = pb.Kept.FromString(body)
    state = GenerationState.CANCELLED if said.cancelled else GenerationState.FINISHED
    spans = tuple(map(_span_from, said.spans))
    classes = tuple(said.numerics_classes)
    return GenerationView(_request_from(said.request), spans, said.epoch, None, state, classes)


def value_of(codes: Mapping[T, int], code: int, what: str) -> T:
    """The value that a stored code stands for; raises DataLoss for a code that is none."""
    for value, known in codes.items():
        if known == code:
            return value
    raise DataLoss(f"{code} is no {what}")


def _place(span: pb.Span) -> tuple[int, int, int]:
    return span.choice, span.start, span.finish_reason


def _span_to(span: TokenSpan) -> pb.Span:
    message = pb.Span(
        choice=span.choice, start=span.start, ids=span.ids, cached_tokens=span.cached_tokens
    )
    if span.finish_reason is not None:
        message.finish_reason = FINISH_REASONS[span.finish_reason]
    if span.logprobs:
        message.logprobs.extend([entry.logprob for entry in span.logprobs])
        message.top_counts.extend([len(entry.top) for entry in span.logprobs])
        message.top_ids.extend([top_id for entry in span.logprobs for top_id, _ in entry.top])
        message.top_logprobs.extend([value for entry in span.logprobs for _, value in entry.top])
    return message


def _span_from(message: pb.Span) -> TokenSpan:
    return TokenSpan(
        choice=message.choice,
        start=message.start,
        ids=tuple(message.ids),
        logprobs=_logprobs_from(message) if message.logprobs else (),
        finish_reason=(
            value_of(FINISH_REASONS, message.finish_reason, "finish reason")
            if message.finish_reason
            else None
        ),
        cached_tokens=message.cached_tokens,
    )


def _logprobs_from(message: pb.Span) -> tuple[TokenLogprob, ...]:
    tops = iter(zip(message.top_ids, message.top_logprobs, strict=True))
    return tuple(
        TokenLogprob(value, tuple(islice(tops, count)))
        for value, count in zip(message.logprobs, message.top_counts, strict=True)
    )


def _request_to(request: GenerationRequest) -> pb.Request:
    return pb.Request(
        generation_id=request.generation_id,
        model_id=request.model.model_id,
        model_digest=request.model.digest,
        prompt_ids=request.prompt_ids,
        choices=request.choices,
        sampling=_sampling_to(request.sampling),
        stop_strings=request.stop_strings,
        kind=GENERATION_KINDS[request.kind],
        created_unix_s=request.created_unix_s,
        include_usage=request.include_usage,
        numerics_class=request.numerics_class,
        ask_digest=request.ask_digest,
        cache_salt=request.cache_salt,
        tenant=request.tenant,
        priority=PRIORITY_CLASSES[request.priority],
        tenant_weight=request.tenant_weight if request.tenant_weight != 1 else 0,
        response=None if request.response is None else _response_to(request.response),
        parts=None if request.parts == PLAIN else _parts_to(request.parts),
    )


def _request_from(message: pb.Request) -> GenerationRequest:
    return GenerationRequest(
        generation_id=message.generation_id,
        model=ModelRef(message.model_id, message.model_digest),
        prompt_ids=tuple(message.prompt_ids),
        sampling=_sampling_from(message.sampling),
        choices=message.choices,
        stop_strings=tuple(message.stop_strings),
        kind=value_of(GENERATION_KINDS, message.kind, "generation kind"),
        created_unix_s=message.created_unix_s,
        include_usage=message.include_usage,
        numerics_class=message.numerics_class,
        ask_digest=message.ask_digest,
        cache_salt=message.cache_salt,
        tenant=message.tenant,
        priority=value_of(PRIORITY_CLASSES, message.priority, "priority class"),
        tenant_weight=message.tenant_weight or 1,
        response=_response_from(message.response) if message.HasField("response") else None,
        parts=_parts_from(message.parts),
    )


def _parts_to(parts: AnswerParts) -> pb.Parts:
    return pb.Parts(
        calls=CALL_FORMS[parts.calls],
        tools=parts.tools,
        named=parts.named,
        thinking=THINKING[parts.thinking],
    )


def _parts_from(message: pb.Parts) -> AnswerParts:
    return AnswerParts(
        calls=value_of(CALL_FORMS, message.calls, "form of calls"),
        tools=tuple(message.tools),
        named=message.named,
        thinking=value_of(THINKING, message.thinking, "kind of thinking"),
    )


def _response_to(terms: ResponseTerms) -> pb.ResponseTerms:
    return pb.ResponseTerms(store=terms.store, background=terms.background, details=terms.details)


def _response_from(message: pb.ResponseTerms) -> ResponseTerms:
    return ResponseTerms(message.store, message.background, message.details)


def _sampling_to(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        **{name: getattr(sampling, name) for name in _AS_THEY_ARE},
        logit_bias_ids=sampling.logit_bias.keys(),
        logit_biases=sampling.logit_bias.values(),
        grammar=sampling.grammar.text if sampling.grammar else "",
        grammar_library=sampling.grammar.library if sampling.grammar else "",
    )


def _sampling_from(message: pb.Sampling) -> Sampling:
    biases = zip(message.logit_bias_ids, message.logit_biases, strict=True)
    return Sampling(
        **{name: row.read(message) for name, row in _AS_THEY_ARE.items()},
        logit_bias=MappingProxyType(dict(biases)),
        grammar=(Grammar(message.grammar, message.grammar_library) if message.grammar else None),
    )
