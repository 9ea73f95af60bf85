from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given

from services.common.errors import DataLoss
from services.common.generation import (
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
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Record,
    Sealed,
)
from services.controller.journal.bodies import (
    joined,
    records_from,
    stored,
    stored_together,
)
from tests.unit.controller.journal.samples import records

REQUEST = GenerationRequest(
    "g",
    ModelRef("tiny", "ab"),
    (1, 2**32 - 1),
    Sampling(
        max_tokens=7,
        temperature=0.7,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={5: -1.0, 3: 0.1},
        top_logprobs=2,
        min_tokens=1,
        stop_token_ids=(9,),
        ignore_eos=True,
        eos_token_ids=(2,),
        seed=2**64 - 1,
    ),
    choices=2,
    stop_strings=("\n\n",),
    kind=GenerationKind.COMPLETION,
    created_unix_s=1,
    include_usage=True,
    numerics_class="exact",
    ask_digest="d",
    cache_salt="s",
)
SPAN = TokenSpan(
    1,
    4,
    (7, 8),
    (TokenLogprob(-0.5, ((7, -0.5), (9, -1.0))), TokenLogprob(-1.0, ((8, -1.0),))),
    FinishReason.LENGTH,
    16,
)
SAMPLES: tuple[Record, ...] = (
    HeadBound("g", "i", "f", "p", REQUEST),
    Granted("g", 2, "i", "f", "p", REQUEST, (SPAN,), "exact"),
    IdsAppended("g", SPAN),
    Sealed("g", 2),
    Ended("g", 1, CancelReason.STOP, 3),
    Inexact("g", (5, 300)),
)
REQUEST_BYTES = (
    "98010a0167120474696e791a026162220601ffffffff0f2802326809666666666666e63f1003190000000000"
    "00e83f21000000000000d03f29000000000000e03f31000000000000e0bf39000000000000f83f420205034a"
    "10000000000000f0bf9a9999999999b93f5002580760016a010970017a01028001ffffffffffffffffff013a"
    "020a0a4002480150015a0565786163746201646a0173"
)
SPAN_BYTES = (
    "2d080110041a02070820022a08000000bf000080bf320202013a03070908420c000000bf000080bf000080bf4810"
)
GRANTED_BYTES = "08021201691a01662201702a" + REQUEST_BYTES + "32" + SPAN_BYTES
STORED = (
    (1, "0a01691201661a017022" + REQUEST_BYTES),
    (2, GRANTED_BYTES + "3a056578616374"),
    (3, "0a" + SPAN_BYTES),
    (4, "0802"),
    (5, "080110021803"),
    (6, "0a0305ac02"),
)
"""What files of schema 3 hold of the samples, for ever: another form is another schema."""


def _read_back(record: Record) -> list[Record]:
    return list(records_from(record.generation_id, *stored(record)))


@given(records(64))
def test_every_record_comes_back_as_it_was(record: Record) -> None:
    assert _read_back(record) == [record]


@pytest.mark.parametrize(("record", "said"), list(zip(SAMPLES, STORED, strict=True)))
def test_the_bytes_in_files_stay_what_they_are(record: Record, said: tuple[int, str]) -> None:
    kind, body = said[0], bytes.fromhex(said[1])
    assert list(records_from("g", kind, body)) == [record]
    assert stored(record) == (kind, body)


def test_a_grant_of_a_file_that_knew_no_numerics_class_has_none() -> None:
    (granted,) = records_from("g", 2, bytes.fromhex(GRANTED_BYTES))
    assert granted == replace(SAMPLES[1], numerics_class="")


def _later(record: Record) -> Record:
    """With what files of the bytes above had not yet."""
    if not isinstance(record, HeadBound | Granted):
        return record
    sampling = replace(
        REQUEST.sampling,
        grammar=Grammar("{}", "llguidance-1"),
        allowed_token_ids=(3, 2**32 - 1),
        given_ids=(1, 2),
        echo=True,
        kv_int8=True,
    )
    parts = AnswerParts(CallForm.HERMES, ("look",), True, Thinking.BEGUN)
    terms = ResponseTerms(store=True, background=True, details="{}")
    request = replace(
        REQUEST,
        sampling=sampling,
        tenant="acme",
        priority=PriorityClass.TOLERANT,
        tenant_weight=3,
        response=terms,
        parts=parts,
    )
    return replace(record, request=request)


@pytest.mark.parametrize(
    "record", [*map(_later, SAMPLES)], ids=lambda record: type(record).__name__
)
def test_no_field_of_a_record_is_left_out_of_the_file(record: Record) -> None:
    """Whatever a record or its request can say, in fields that are added too, is read back."""
    changed = list(_variants(record, type(record).__name__))
    assert len(changed) >= len(fields(record)) - 1
    for where, variant in changed:
        assert variant != record
        assert _read_back(variant) == [variant], where


def _variants(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The dataclass with each of its leaves changed, one at a time."""
    hints = typing.get_type_hints(type(value))
    for field in fields(value):
        place, part = f"{where}.{field.name}", getattr(value, field.name)
        assert part not in (None, (), "", {}), f"give {place} a value to be read back"
        changed = list(_changed(part, place))
        if types.NoneType in typing.get_args(hints[field.name]):
            changed.append((place, None))
        for inner, other in changed:
            yield inner, replace(value, **{field.name: other})


def _changed(part: Any, where: str) -> Iterator[tuple[str, Any]]:
    match part:
        case enum.Enum():
            yield from ((where, other) for other in type(part) if other is not part)
        case bool():
            yield where, not part
        case int():
            yield where, part - 1
        case float():
            yield where, part / 2
        case str():
            yield where, f"{part}x"
        case Mapping():
            yield where, {}
            yield where, {**part, 11: -0.25}
        case tuple():
            if len(set(map(type, part))) == 1:  # else its places have meanings of their own
                yield where, ()
            for n, element in enumerate(part):
                for inner, other in _changed(element, f"{where}[{n}]"):
                    yield inner, (*part[:n], other, *part[n + 1 :])
        case _ if is_dataclass(part):
            yield from _variants(part, where)
        case _:
            raise TypeError(f"say how {where} is changed")


def test_a_forgotten_generation_has_no_body() -> None:
    with pytest.raises(TypeError):
        stored(Forgotten("g"))


def test_spans_stored_together_come_back_one_by_one() -> None:
    spans = (SPAN, TokenSpan(0, 0, (1,)))
    read = list(records_from("g", *stored_together(spans)))
    assert read == [IdsAppended("g", span) for span in spans]


def test_bodies_are_joined_a_span_a_choice_with_every_id_and_logprob() -> None:
    def part(choice: int, start: int, end: int, reason: FinishReason | None = None) -> TokenSpan:
        ids = tuple(range(start, end))
        said = tuple(
            TokenLogprob(-0.5 * i, tuple((n, -1.0 * n) for n in range(i % 3))) for i in ids
        )
        return TokenSpan(choice, start, ids, said, reason)

    parts = [
        part(1, 3, 5, FinishReason.STOP),
        part(0, 0, 4),
        part(1, 0, 3),
        part(0, 4, 9),
        part(0, 9, 9, FinishReason.LENGTH),
    ]
    body = joined(stored(IdsAppended("g", span))[1] for span in parts)
    kind = stored(IdsAppended("g", SPAN))[0]
    assert list(records_from("g", kind, body)) == [
        IdsAppended("g", part(0, 0, 9, FinishReason.LENGTH)),
        IdsAppended("g", part(1, 0, 5, FinishReason.STOP)),
    ]


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (0, "", "0 is no kind of record"),
        (7, "", "7 is no kind of record"),
        (5, "", "0 is no cancel reason"),
        (5, "1009", "9 is no cancel reason"),
        (3, "0a022009", "9 is no finish reason"),
        (1, "2200", "0 is no generation kind"),
    ],
)
def test_a_code_that_was_never_given_is_damage(kind: int, body: str, said: str) -> None:
    with pytest.raises(DataLoss, match=said):
        list(records_from("g", kind, bytes.fromhex(body)))


@pytest.mark.parametrize("more", ["2a0400000000", "2a04000000003201013a0101"])
def test_logprobs_or_alternatives_that_are_not_all_there_are_damage(more: str) -> None:
    span = bytes.fromhex("1a0107" + more)
    with pytest.raises(ValueError, match="zip"):
        list(records_from("g", 3, bytes([0x0A, len(span)]) + span))
