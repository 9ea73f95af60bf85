"""Records to be written and read back: any at all, at the bounds of what can be asked."""

from __future__ import annotations

from hypothesis import strategies as st

from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.controller.core.ledger.records import (
    Ended,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
    Sealed,
)

_TOP = 2**32 - 1
_COUNTS = st.sampled_from([0, 1, _TOP]) | st.integers(0, _TOP)
_AT_LEAST_ONE = st.sampled_from([1, _TOP]) | st.integers(1, _TOP)
_NAMES = st.text("abcXYZ019-_.", min_size=1, max_size=64)
_OPTIONAL_NAMES = st.just("") | _NAMES
_LOGPROBS = st.sampled_from([0.0, float("-inf")]) | st.floats(-50, 0, width=32)
_TOPS = st.lists(st.tuples(_COUNTS, _LOGPROBS), max_size=20).map(tuple)
_EPOCHS = st.sampled_from([1, 2**31 - 1]) | st.integers(1, 2**31 - 1)


def _ids(least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(_COUNTS, min_size=least, max_size=9).map(tuple)


def _reals(low: float, high: float, width: int) -> st.SearchStrategy[float]:
    return st.sampled_from([low, high]) | st.floats(low, high, width=width)  # type: ignore[arg-type]


def requests(width: int) -> st.SearchStrategy[GenerationRequest]:
    """`width`: bits of its real numbers."""
    sampling = st.builds(
        Sampling,
        max_tokens=_AT_LEAST_ONE,
        temperature=_reals(0, 100, width),
        top_k=_COUNTS,
        top_p=_reals(2.0**-126, 1, width),
        min_p=_reals(0, 1, width),
        presence_penalty=_reals(-100, 100, width),
        frequency_penalty=_reals(-100, 100, width),
        repetition_penalty=_reals(2.0**-126, 100, width),
        logit_bias=st.dictionaries(_COUNTS, _reals(-100, 100, width), max_size=9),
        top_logprobs=st.none() | st.integers(0, 20),
        min_tokens=_COUNTS,
        stop_token_ids=_ids(),
        ignore_eos=st.booleans(),
        eos_token_ids=_ids(),
        seed=st.sampled_from([0, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    )
    return st.builds(
        GenerationRequest,
        generation_id=_NAMES,
        model=st.builds(ModelRef, st.text(max_size=9), st.text(max_size=9)),
        prompt_ids=_ids(1),
        sampling=sampling,
        choices=st.integers(1, 128),
        stop_strings=st.lists(st.text(max_size=9), max_size=64).map(tuple),
        kind=st.sampled_from(GenerationKind),
        created_unix_s=st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(0, 2**40),
        include_usage=st.booleans(),
        numerics_class=_OPTIONAL_NAMES,
        ask_digest=_OPTIONAL_NAMES,
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
        st.builds(
            Ended,
            _NAMES,
            st.none() | st.integers(0, 127),
            st.sampled_from(CancelReason),
            st.none() | _COUNTS,
        ),
    )
