from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import Cancelled, DataLoss, ResourceExhausted, Unavailable
from services.common.exchange import (
    Closed,
    CloseReason,
    GenerationState,
    GenerationView,
    LeaveReason,
    Route,
    Tokens,
)
from services.common.generation import (
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.model.vocabulary import Vocabulary
from services.router.core.actions import Action, AskResume, Deliver, End, OpenStream, SendCancel
from services.router.core.balancer import Balancer
from services.router.core.follower import Follower
from services.router.core.follower_settings import FollowerSettings
from services.router.core.hearing import Hearing
from services.router.core.reading import Reading
from services.router.core.transcript import Position, Transcript

MODEL = ModelRef("m", "d")
A = Route("p-a", "f-a", "i-a", "a:1", 1.0, MODEL, 100)
B = Route("p-b", "f-b", "i-b", "b:1", 1.0, MODEL, 100)
LETTERS = [bytes((letter,)) for letter in range(128)]
REQUEST = GenerationRequest("g", MODEL, (1,), Sampling(max_tokens=3), stop_strings=("xy",))


def begun(request: GenerationRequest = REQUEST) -> tuple[Reading, Balancer]:
    reading, balancer = made(request)
    assert kinds(reading.perform(reading.follower.begin(A, 0.0))) == [OpenStream]
    return reading, balancer


def made(request: GenerationRequest, after: Position | None = None) -> tuple[Reading, Balancer]:
    balancer = Balancer()
    balancer.update((A, B))
    follower = Follower(request, FollowerSettings())
    transcript = Transcript(request, follower.runs, Vocabulary(LETTERS, LETTERS), after)
    return Reading(follower, transcript, balancer, Hearing(0.5), max_unread_bytes=1000), balancer


def back_at(event_id: str, state: GenerationState, text: str = "") -> Reading:
    """A client that has come back with its last event's id, to what the journal holds."""
    reading, _ = made(REQUEST, Position.parse(event_id))
    spans = (TokenSpan(0, 0, tuple(text.encode())),) if text else ()
    reading.rejoin(GenerationView(REQUEST, spans, 1, None, state), 0.0)
    return reading


def kinds(actions: Sequence[Action]) -> list[type[Action]]:
    return [type(action) for action in actions]


def tell(reading: Reading, text: str, end: FinishReason | None = None) -> list[Action]:
    start = len(reading.follower.runs[0])
    span = TokenSpan(0, start, tuple(text.encode()), (), end)
    return reading.perform(reading.follower.frame(1, Tokens((span,), 1), 0.1))


def test_text_comes_to_light_before_the_edge_is_told_of_it() -> None:
    reading, _ = begun()
    assert kinds(tell(reading, "a")) == [Deliver]
    assert reading.transcript.take()[0].text == "a"


def test_a_stop_string_ends_the_generation_in_the_same_breath() -> None:
    reading, balancer = begun()
    actions = tell(reading, "xy")
    assert actions.index(next(a for a in actions if isinstance(a, SendCancel))) > 0
    assert isinstance(actions[-1], End)
    assert (reading.ended, reading.error) == (True, None)
    assert not reading.is_open(1)
    assert balancer._running == {}


def test_a_stream_counts_at_its_pipeline_until_it_is_left() -> None:
    reading, balancer = begun()
    assert balancer._running == {"f-a": 1}
    reading.left(1)
    reading.left(1)
    assert balancer._running == {}


def test_a_reader_whose_client_does_not_read_is_let_go() -> None:
    reading, _ = begun(replace(REQUEST, sampling=Sampling(max_tokens=500)))
    reading.writing = True
    assert not reading.ended
    tell(reading, "a" * 200)
    assert isinstance(reading.error, ResourceExhausted)


def test_what_has_ended_opens_and_asks_nothing_more() -> None:
    reading, _ = begun()
    assert kinds(reading.fail(Unavailable("down")))[-1] is End
    assert reading.fail(Unavailable("again")) == []
    broken = reading.follower._resume(0.2, LeaveReason.SILENT)
    assert AskResume in kinds(broken)
    assert AskResume not in kinds(reading.perform(broken))
    assert isinstance(reading.error, Unavailable)
    assert reading.error.message == "down"


def test_an_end_that_leaves_text_out_is_data_loss() -> None:
    reading, _ = begun()
    assert End not in kinds(reading.perform(reading.follower.frame(2, _finished(), 0.1)))
    reading.perform([End(None)])
    assert isinstance(reading.error, DataLoss)


def _finished() -> Closed:
    return Closed(CloseReason.FINISHED, (3,))


def test_a_client_that_goes_takes_its_streams_along() -> None:
    reading, balancer = begun()
    reading.close(resumable=True)
    assert balancer._running == {}
    assert not reading.is_open(1)


def test_the_end_by_length_needs_no_word_of_the_router() -> None:
    reading, _ = begun()
    tell(reading, "abc", FinishReason.LENGTH)
    actions = reading.perform(reading.follower.frame(1, _finished(), 0.2))
    assert reading.ended
    assert SendCancel not in kinds(actions)


def test_usage_is_owed_once_the_generation_has_ended_well() -> None:
    reading, _ = begun()
    tell(reading, "ab")
    assert not reading.owes_usage
    tell(reading, "c", FinishReason.LENGTH)
    assert reading.owes_usage


def test_a_client_that_was_told_usage_is_owed_none_when_it_comes_back() -> None:
    reading, _ = begun()
    tell(reading, "abc", FinishReason.LENGTH)
    reading.transcript.take()
    told, end = reading.transcript.event_id(), reading.transcript.end_id()
    assert back_at(told, GenerationState.FINISHED, "abc").owes_usage
    assert not back_at(end, GenerationState.FINISHED, "abc").owes_usage


def test_a_client_is_owed_no_usage_where_its_ids_never_came_back() -> None:
    reading, _ = begun()
    tell(reading, "ab")
    reading.transcript.take()
    back = back_at(reading.transcript.event_id(), GenerationState.CANCELLED)
    assert isinstance(back.error, Cancelled)
    assert not back.transcript.caught_up
    assert back.transcript.take() == ()
    assert not back.owes_usage
