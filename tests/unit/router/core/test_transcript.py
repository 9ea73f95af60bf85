from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition, InvalidArgument, OutOfRange
from services.common.generation import FinishReason, GenerationRequest, TokenLogprob
from services.common.token_run import TokenRun, event_id
from services.model.tokenizer import Tokenizer
from services.router.core.transcript import Delta, Position, Transcript
from tests.tiny_model import tiny_tokenizer

ENCODER = tiny_tokenizer()
EOS = ENCODER.token_to_id("<|im_end|>")
VOCABULARY = Tokenizer(ENCODER.to_str().encode()).vocabulary
REPLY = "Über den Wolken. 東京 🚀 stop it"
Make = Callable[..., GenerationRequest]


def _ids(text: str) -> list[int]:
    ids: list[int] = ENCODER.encode(text, add_special_tokens=False).ids
    return ids


def _tell(
    request: GenerationRequest, ids: list[list[int]], pieces: list[int], after: str | None = None
) -> list[Delta]:
    """What a transcript tells whose runs grow by these numbers of ids."""
    runs = [TokenRun() for _ in ids]
    position = Position.parse(after) if after else None
    transcript = Transcript(request, runs, VOCABULARY, position)
    told: list[Delta] = []
    for piece in pieces:
        for run, all_ids in zip(runs, ids, strict=True):
            run.append(len(run), all_ids[len(run) : len(run) + piece])
        transcript.advance()
        told += transcript.take()
    return told


def _text(told: list[Delta], choice: int) -> str:
    return "".join(delta.text for delta in told if delta.choice == choice)


@given(st.lists(st.integers(1, 9), min_size=60, max_size=60), st.data())
def test_a_reader_resumed_at_any_event_gets_exactly_the_rest(
    make_request: Make, pieces: list[int], data: st.DataObject
) -> None:
    ids = [[*_ids(REPLY), EOS], [*_ids("short 🚀"), EOS]]
    request = make_request(choices=2, stop_strings=("stop",))
    told = _tell(request, ids, pieces)
    cut = data.draw(st.integers(0, len(told) - 1))
    again = _tell(request, ids, [data.draw(st.integers(1, 50))] * 60, told[cut].event_id)
    for choice in range(2):
        assert _text(told[: cut + 1], choice) + _text(again, choice) == _text(told, choice)
    finishes = [(delta.choice, delta.finish) for delta in told[: cut + 1] + again if delta.finish]
    assert sorted(finishes) == [(0, FinishReason.STOP), (1, FinishReason.STOP)]
    assert all(delta.event_id == told[-1].event_id for delta in again[-1:])


def test_a_choice_that_a_stop_string_ends_is_reported_once(make_request: Make) -> None:
    run = TokenRun(_ids("one stop two"))
    transcript = Transcript(make_request(stop_strings=("stop",)), [run], VOCABULARY)
    assert transcript.advance() == [(0, len(_ids("one stop")))]
    assert transcript.advance() == []
    assert transcript.finished


def test_usage_counts_prompt_and_all_choices_up_to_their_ends(make_request: Make) -> None:
    runs = [TokenRun([*_ids("hi"), EOS, 5, 6]), TokenRun([*_ids("you"), EOS])]
    transcript = Transcript(make_request(choices=2), runs, VOCABULARY)
    transcript.advance()
    usage = transcript.usage
    assert usage.prompt_tokens == 2
    assert usage.completion_tokens == len(_ids("hi")) + len(_ids("you")) + 2


def test_a_prompt_was_cached_as_far_as_its_first_choice_found_it(make_request: Make) -> None:
    runs = [TokenRun(), TokenRun()]
    transcript = Transcript(make_request(choices=2), runs, VOCABULARY)
    runs[1].append(0, (5,), (), 48)
    assert transcript.usage.cached_tokens == 0
    runs[0].append(0, (5,), (), 16)
    assert transcript.usage.cached_tokens == 16


def test_an_event_of_other_ids_is_refused(make_request: Make) -> None:
    other = [TokenRun(_ids("another text"))]
    after = Position.parse(event_id(other, [3]))
    transcript = Transcript(make_request(), [TokenRun(_ids(REPLY))], VOCABULARY, after)
    with pytest.raises(FailedPrecondition):
        transcript.advance()


def test_an_event_behind_the_end_is_refused(make_request: Make) -> None:
    ids = [*_ids("hi"), EOS]
    after = Position.parse(f"{len(ids) + 1}-00000000")
    transcript = Transcript(make_request(), [TokenRun(ids)], VOCABULARY, after)
    with pytest.raises(OutOfRange):
        transcript.advance()


def test_an_event_ahead_of_what_is_held_is_waited_for(make_request: Make) -> None:
    ids = _ids(REPLY)
    full = TokenRun(ids)
    after = Position.parse(event_id([full], [len(ids) - 1]))
    run = TokenRun(ids[:4])
    transcript = Transcript(make_request(), [run], VOCABULARY, after)
    transcript.advance()
    assert not transcript.caught_up
    assert transcript.take() == ()
    run.append(4, ids[4:])
    transcript.advance()
    assert transcript.caught_up
    (delta,) = transcript.take()
    assert delta.text == "it"


def test_a_reader_that_had_usage_is_told_nothing_again(make_request: Make) -> None:
    ids = [*_ids("hi"), EOS]
    first = Transcript(make_request(), [TokenRun(ids)], VOCABULARY)
    first.advance()
    first.take()
    again = Transcript(make_request(), [TokenRun(ids)], VOCABULARY, Position.parse(first.end_id()))
    again.advance()
    assert again.take() == ()
    assert again.told_end
    assert again.finished


@pytest.mark.parametrize("text", ["-1", "1" * 31, "3", "3-xyz", "3-00000000.usage", "a-00000000"])
def test_what_no_router_has_sent_is_no_position(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Position.parse(text)


def test_a_position_of_another_number_of_choices_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        Position.parse("3,4-00000000", choices=1)


def test_logprobs_come_one_a_token_with_their_offsets(make_request: Make) -> None:
    ids = _ids("a東b")
    entries = [TokenLogprob(-float(i)) for i in range(len(ids))]
    transcript = Transcript(make_request(top_logprobs=0), [TokenRun(ids, entries)], VOCABULARY)
    transcript.advance()
    (delta,) = transcript.take()
    assert len(delta.logprobs) == len(delta.ids) == len(delta.offsets) == len(ids)
    assert delta.offsets[0] == 0
    assert delta.offsets[-1] == 2
