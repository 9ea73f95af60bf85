"""Records to be written and read back: any at all, at the bounds of what can be asked."""

from __future__ import annotations

from hypothesis import strategies as st

from services.common.generation import (
    AnswerParts,
    CallForm,
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
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
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Record,
    Sealed,
)
from tests.samplings import samplings

_TOP = 2**32 - 1
_COUNTS = st.sampled_from([0, 1, _TOP]) | st.integers(0, _TOP)
_NAMES = st.text("abcXYZ019-_.", min_size=1, max_size=64)
_OPTIONAL_NAMES = st.just("") | _NAMES
_LOGPROBS = st.sampled_from([0.0, float("-inf")]) | st.floats(-50, 0, width=32)
_TOPS = st.lists(st.tuples(_COUNTS, _LOGPROBS), max_size=20).map(tuple)
_EPOCHS = st.sampled_from([1, 2**31 - 1]) | st.integers(1, 2**31 - 1)


def _ids(least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(_COUNTS, min_size=least, max_size=9).map(tuple)


def requests(width: int) -> st.SearchStrategy[GenerationRequest]:
    """`width`: bits of its real numbers."""
    return st.builds(
        GenerationRequest,
        generation_id=_NAMES,
        model=st.builds(ModelRef, st.text(max_size=9), st.text(max_size=9)),
        prompt_ids=_ids(1),
        sampling=samplings(width, held=False),
        choices=st.integers(1, 128),
        stop_strings=st.lists(st.text(max_size=9), max_size=64).map(tuple),
        kind=st.sampled_from(GenerationKind),
        created_unix_s=st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(0, 2**40),
        include_usage=st.booleans(),
        numerics_class=_OPTIONAL_NAMES,
        ask_digest=_OPTIONAL_NAMES,
        cache_salt=st.text(max_size=9),
        tenant=_OPTIONAL_NAMES,
        priority=st.sampled_from(PriorityClass),
        parts=st.builds(
            AnswerParts,
            calls=st.none() | st.sampled_from(CallForm),
            tools=st.lists(_NAMES, max_size=3).map(tuple),
            named=st.booleans(),
            thinking=st.sampled_from(Thinking),
        ),
        response=st.none() | st.builds(ResponseTerms, st.booleans(), st.booleans(), st.text()),
    )


@st.composite
def _spans(draw: st.DrawFn) -> TokenSpan:
    ids = draw(_ids())
    with_logprobs = draw(st.booleans())
    return TokenSpan(
        choice=draw(st.integers(0, 127)),
        start=draw(_COUNTS),
        ids=ids,
        logprobs=tuple(TokenLogprob(draw(_LOGPROBS), draw(_TOPS)) for _ in ids)
        if with_logprobs
        else (),
        finish_reason=draw(st.none() | st.sampled_from(FinishReason)),
        cached_tokens=draw(_COUNTS),
    )


def records(width: int) -> st.SearchStrategy[Record]:
    """Every kind that has a row."""
    spans = st.lists(_spans(), max_size=4).map(tuple)
    head = (_OPTIONAL_NAMES, _NAMES, _NAMES)
    return st.one_of(
        st.builds(HeadBound, _NAMES, *head, requests(width)),
        st.builds(Granted, _NAMES, _EPOCHS, *head, requests(width), spans),
        st.builds(IdsAppended, _NAMES, _spans()),
        st.builds(Sealed, _NAMES, _EPOCHS),
        st.builds(Inexact, _NAMES, st.lists(_COUNTS, min_size=1, max_size=4).map(tuple)),
        st.builds(
            Ended,
            _NAMES,
            st.none() | st.integers(0, 127),
            st.sampled_from(CancelReason),
            st.none() | _COUNTS,
        ),
    )


REQUEST = GenerationRequest(
    "g",
    ModelRef("tiny", "ab"),
    (1, 2, 3),
    Sampling(
        max_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={5: -1.0},
        top_logprobs=2,
        min_tokens=1,
        stop_token_ids=(9,),
        ignore_eos=True,
        eos_token_ids=(2,),
        seed=2**63,
    ),
    choices=2,
    stop_strings=("\n\n",),
    kind=GenerationKind.COMPLETION,
    created_unix_s=1,
    include_usage=True,
    numerics_class="exact",
)
SPAN = TokenSpan(1, 4, (7, 2**32 - 1), (TokenLogprob(-0.5, ((7, -0.5),)), TokenLogprob(-1.0)))
RECORDS: tuple[Record, ...] = (
    HeadBound("g", "i", "f", "p", REQUEST),
    IdsAppended("g", SPAN),
    Granted("g", 2, "i2", "f2", "p2", REQUEST, (TokenSpan(0, 0, (), (), FinishReason.STOP), SPAN)),
    Inexact("g", (3, 7)),
    Sealed("g", 2),
    Ended("g", 1, CancelReason.STOP, 3),
    Ended("g", None, CancelReason.CLIENT, None),
)
