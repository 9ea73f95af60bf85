import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.errors import Diverged, InvalidArgument
from services.common.generation import FinishReason, TokenLogprob
from services.common.token_run import TokenRun, event_id, matches_event_id, parse_event_id

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=8)


def test_an_append_at_the_length_grows_the_run() -> None:
    run = TokenRun()
    appended = run.append(0, (5, 6))
    assert (appended.added, appended.length, appended.gap) == (2, 2, False)
    assert list(run.ids) == [5, 6]


def test_an_append_that_overlaps_adds_only_what_is_new() -> None:
    run = TokenRun((1, 2, 3))
    assert run.append(1, (2, 3, 4)).added == 1
    assert run.append(0, (1, 2)).added == 0
    assert list(run.ids) == [1, 2, 3, 4]


def test_what_was_cached_counts_with_the_first_id_and_goes_with_it() -> None:
    run = TokenRun()
    run.append(0, (), (), 32)
    assert run.cached_tokens == 0
    run.append(0, (1, 2), (), 16)
    run.append(0, (1, 2, 3), (), 48)
    run.append(3, (4,), (), 64)
    assert run.cached_tokens == run.span(0).cached_tokens == 16
    assert run.span(0, 1).cached_tokens == 0


def test_a_gap_is_answered_with_the_length_and_adds_nothing() -> None:
    run = TokenRun((1, 2))
    appended = run.append(3, (9,))
    assert (appended.added, appended.length, appended.gap) == (0, 2, True)
    assert len(run) == 2


def test_a_different_id_diverges_at_its_position_and_nothing_is_added() -> None:
    run = TokenRun((1, 2, 3))
    with pytest.raises(Diverged) as caught:
        run.append(1, (2, 7, 8, 9))
    assert (caught.value.position, caught.value.held, caught.value.got) == (2, 3, 7)
    assert list(run.ids) == [1, 2, 3]


@pytest.mark.parametrize("ids", [(-1,), (2**32,)])
def test_what_is_no_id_is_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument):
        TokenRun().append(0, ids)


def test_a_negative_position_and_odd_logprobs_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        TokenRun().append(-1, (1,))
    with pytest.raises(InvalidArgument):
        TokenRun().append(0, (1, 2), (TokenLogprob(-0.5),))


def test_logprobs_stay_with_their_ids() -> None:
    run = TokenRun((1, 2), (TokenLogprob(-1.0), TokenLogprob(-2.0)))
    run.append(1, (2, 3), (TokenLogprob(-9.0), TokenLogprob(-3.0)))
    span = run.span(0, 1, None, FinishReason.STOP)
    assert [entry.logprob for entry in span.logprobs] == [-2.0, -3.0]
    assert (span.start, span.end, span.finish_reason) == (1, 3, FinishReason.STOP)


@given(IDS, IDS)
def test_the_checksum_is_that_of_the_little_endian_words(first: list[int], more: list[int]) -> None:
    run = TokenRun(first)
    run.append(len(first), more)
    for length in range(len(first) + len(more) + 1):
        words = array("I", (first + more)[:length])
        assert run.checksum(length) == zlib.crc32(words.tobytes())


def test_an_event_id_names_lengths_and_ids() -> None:
    runs = [TokenRun((1, 2, 3)), TokenRun((4,))]
    text = event_id(runs, (2, 1))
    lengths, checksum = parse_event_id(text)
    assert lengths == (2, 1)
    assert matches_event_id(runs, lengths, checksum)
    assert not matches_event_id([TokenRun((1, 9)), TokenRun((4,))], lengths, checksum)
    assert not matches_event_id(runs[:1], lengths, checksum)


@pytest.mark.parametrize("text", ["", "-1", "1", "1-xyz", "1,-00000000", "10000000000-00000000"])
def test_a_garbled_event_id_names_its_field(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_event_id(text)
    assert caught.value.field == "last_event_id"


class RunMachine(RuleBasedStateMachine):
    """Whatever is appended in whatever order, a run is a growing prefix of what it first held."""

    def __init__(self) -> None:
        super().__init__()
        self.run = TokenRun()
        self.model: list[int] = []

    @rule(start=st.integers(0, 12), ids=st.lists(st.integers(0, 2), max_size=5))
    def append(self, start: int, ids: list[int]) -> None:
        overlap = self.model[start : start + len(ids)]
        if ids[: len(overlap)] != overlap:
            with pytest.raises(Diverged):
                self.run.append(start, ids)
            return
        appended = self.run.append(start, ids)
        if start > len(self.model):
            assert appended.gap
            return
        self.model += ids[len(overlap) :]

    @invariant()
    def holds_the_model(self) -> None:
        assert list(self.run.ids) == self.model


TestRunMachine = RunMachine.TestCase
