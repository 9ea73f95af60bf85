from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.common.errors import (
    Cancelled,
    DataLoss,
    Diverged,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ShuntError,
    Superseded,
    Unavailable,
)
from services.common.exchange import (
    Accepted,
    Closed,
    CloseReason,
    GenerationState,
    GenerationView,
    Grant,
    LeaveReason,
    Phase,
    PrefixHolder,
    Progress,
    Route,
    Tokens,
)
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.router.core.actions import (
    Action,
    AskResume,
    CloseStream,
    Deliver,
    End,
    Gain,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.follower import Follower
from services.router.core.follower_settings import FollowerSettings

MODEL = ModelRef("m", "d")
REQUEST = GenerationRequest("g", MODEL, (1, 2), Sampling(max_tokens=50, eos_token_ids=(2,)))
A = Route("p-a", "f-a", "i-a", "a:1", 1.0, MODEL, 100)
B = Route("p-b", "f-b", "i-b", "b:1", 1.0, MODEL, 100)


def tokens(*ids: int, start: int = 0, step: int = 1) -> Tokens:
    return Tokens((TokenSpan(0, start, ids),), step)


def base(*ids: int) -> tuple[TokenSpan, ...]:
    return (TokenSpan(0, 0, ids),) if ids else ()


def kind(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def error_of(actions: Sequence[Action]) -> ShuntError | None:
    assert isinstance(actions[-1], End)
    return actions[-1].error


@pytest.fixture
def follower() -> Follower:
    """Follows a generation at head A and has ids 7 and 8."""
    follower = Follower(REQUEST, FollowerSettings(), "me")
    follower.begin(A, 0.0)
    follower.frame(1, Accepted("f-a", "i-a", "exact", (0,)), 0.0)
    follower.frame(1, tokens(7, 8), 0.0)
    return follower


def test_a_new_generation_opens_epoch_1_at_one_head() -> None:
    (opened,) = Follower(REQUEST, FollowerSettings()).begin(A, 0.0)
    assert isinstance(opened, OpenStream)
    assert (opened.route, opened.call.epoch, opened.call.formation_id) == (A, 1, "f-a")


def test_who_holds_its_prompt_is_told_at_epoch_1_alone() -> None:
    holder = PrefixHolder("a:1", "f", 640)
    follower = Follower(REQUEST, FollowerSettings())
    (opened,) = follower.begin(A, 0.0, holder)
    assert isinstance(opened, OpenStream)
    assert opened.call.prefix_holder == holder
    *_, asked = follower.frame(1, Closed(CloseReason.MOVED, (0,)), 0.1)
    assert isinstance(asked, AskResume)
    *_, again = follower.granted(asked.number, Grant(2, B, ()), 0.2)
    assert isinstance(again, OpenStream)
    assert again.call.prefix_holder is None


def test_without_a_route_the_controller_is_asked() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    (asked,) = follower.begin(None, 0.0)
    assert isinstance(asked, AskResume)
    assert (asked.question.last_epoch, asked.question.left_formation_id) == (0, "")
    (opened,) = follower.granted(1, Grant(1, B, ()), 0.1)
    assert isinstance(opened, OpenStream)


def test_new_ids_are_delivered_once(follower: Follower) -> None:
    assert follower.frame(1, tokens(9, start=2), 0.1) == [Deliver((Gain(0, 2, 3),))]
    assert follower.frame(1, tokens(9, start=2), 0.1) == []
    assert follower.request.numerics_class == "exact"


def test_the_end_of_all_choices_ends_the_reader(follower: Follower) -> None:
    actions = follower.frame(1, tokens(2, start=2), 0.1)
    assert kind(actions) == ["Deliver", "CloseStream", "End"]
    assert error_of(actions) is None
    assert follower.finish_reason(0) is FinishReason.STOP
    assert follower.tick(99.0, serves=False) == follower.cancel() == follower.stopped(0, 1) == []


def test_a_different_id_ends_the_reader(follower: Follower) -> None:
    assert isinstance(error_of(follower.frame(1, tokens(6, start=1), 0.1)), Diverged)


def test_a_choice_that_was_not_asked_for_ends_the_reader(follower: Follower) -> None:
    grant = Grant(2, B, (TokenSpan(5, 0, (1,)),))
    follower.frame(1, Closed(CloseReason.MOVED, (2,)), 0.1)
    assert isinstance(error_of(follower.granted(1, grant, 0.1)), InvalidArgument)


def test_a_frame_of_a_choice_that_was_not_asked_for_ends_the_reader(follower: Follower) -> None:
    frame = Tokens((TokenSpan(5, 0, (1,)),), 1)
    assert isinstance(error_of(follower.frame(1, frame, 0.1)), InvalidArgument)


def watch(follower: Follower, seconds: tuple[float, float], *, serves: bool) -> list[Action]:
    """What ticks bring, four a second, from behind the first time up to the last."""
    first, last = (int(4 * second) for second in seconds)
    ticks = (follower.tick(quarter / 4, serves=serves) for quarter in range(first + 1, last + 1))
    return [action for actions in ticks for action in actions]


def test_silence_of_a_head_that_serves_moves_nothing(follower: Follower) -> None:
    assert watch(follower, (0, 5.75), serves=True) == []


def test_silence_of_a_head_that_does_not_serve_is_asked_about(follower: Follower) -> None:
    assert watch(follower, (0, 5), serves=True) == []
    closed, asked = follower.tick(5.0, serves=False)
    assert closed == CloseStream(1)
    assert isinstance(asked, AskResume)
    assert asked.question.held == base(7, 8)
    assert (asked.question.last_epoch, asked.question.left_formation_id) == (1, "f-a")
    assert asked.question.reason is LeaveReason.SILENT
    assert watch(follower, (5, 50), serves=False) == [], "a question is put once"


def test_a_head_that_does_not_serve_is_followed_while_it_speaks_and_steps(
    follower: Follower,
) -> None:
    for quarter in range(1, 40):
        assert follower.frame(1, Progress(quarter, Phase.DECODE), quarter / 4) == []
        assert follower.tick(quarter / 4, serves=False) == []


def test_signs_of_life_without_steps_are_no_progress(follower: Follower) -> None:
    for quarter in range(1, 8):
        assert follower.frame(1, Progress(1, Phase.DECODE), quarter / 4) == []
        assert follower.tick(quarter / 4, serves=False) == []
    follower.frame(1, Progress(1, Phase.DECODE), 2.0)
    assert kind(follower.tick(2.0, serves=False)) == ["CloseStream", "AskResume"]


def test_a_head_that_is_not_reached_is_left_though_it_serves(follower: Follower) -> None:
    closed, opened = watch(follower, (0, 6), serves=True)
    assert closed == CloseStream(1)
    assert isinstance(opened, OpenStream)
    assert (opened.route, opened.call.from_lengths) == (A, (2,))
    closed, asked = watch(follower, (6, 12), serves=True)
    assert isinstance(asked, AskResume)
    assert asked.question.reason is LeaveReason.UNREACHABLE


def test_the_controller_is_told_for_how_long_a_head_was_not_reached(follower: Follower) -> None:
    lost = Unavailable("refused")
    assert kind(follower.broken(1, lost, 3.0)) == ["CloseStream", "OpenStream"]
    _, asked = follower.broken(2, lost, 3.5)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == 0.5
    assert kind(follower.granted(1, Grant(1, A, ()), 4.0)) == ["OpenStream"]
    assert kind(follower.broken(3, lost, 5.0)) == ["CloseStream"], "what was in vain waits"
    (asked,) = follower.tick(6.0, serves=True)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == 3.0
    follower.granted(2, Grant(1, A, ()), 6.5)
    follower.frame(4, Accepted("f-a", "i-a", "exact", (2,)), 6.6)
    follower.broken(4, lost, 7.0)
    (asked,) = follower.tick(9.0, serves=True)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == 2.0, "it was reached meanwhile"


def test_a_silent_head_was_not_heard_since_its_last_frame(follower: Follower) -> None:
    watch(follower, (0, 6), serves=True)
    _, asked = watch(follower, (6, 12), serves=True)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == pytest.approx(12.0)


def test_a_head_that_others_hear_is_not_left_for_a_stream_that_brings_nothing(
    follower: Follower,
) -> None:
    opened = 0
    for quarter in range(1, 4 * 60):
        now_s = quarter / 4
        actions = kind(follower.tick(now_s, serves=True, silent_s=1.0))
        assert actions in ([], ["CloseStream", "OpenStream"]), "it asks for no other head"
        opened += bool(actions)
    assert opened == 9, "but tries again and again"
    asked = next(
        actions[-1]
        for quarter in range(4 * 60, 4 * 80)
        if (actions := follower.tick(quarter / 4, serves=True, silent_s=0.0))
        and kind(actions) == ["CloseStream", "AskResume"]
    )
    assert isinstance(asked, AskResume)
    assert asked.question.reason is LeaveReason.UNREACHABLE
    assert asked.question.unheard_s > 60, "its own trouble counts in the end"


def test_a_stream_that_breaks_twice_says_when_others_heard_from_its_head(
    follower: Follower,
) -> None:
    lost = Unavailable("refused")
    follower.broken(1, lost, 3.0)
    follower.tick(9.0, serves=True, silent_s=0.5)
    _, asked = follower.broken(2, lost, 9.0)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == 0.5


def test_a_head_that_nobody_hears_any_more_is_left_as_before(follower: Follower) -> None:
    for quarter in range(1, 48):
        follower.tick(quarter / 4, serves=True, silent_s=quarter / 4 - 2)
    _, asked = follower.tick(12.0, serves=True, silent_s=10.0)
    assert isinstance(asked, AskResume)
    assert asked.question.unheard_s == 12.0


def test_who_pauses_lets_its_head_know_and_goes_on_where_it_was(follower: Follower) -> None:
    closed, told = follower.pause()
    assert closed == CloseStream(1)
    assert told == SendDetach("g", 1, A, True, "me.1")
    assert watch(follower, (0, 120), serves=False) == [], "nobody waits for anything"
    (opened,) = follower.go_on(120.0)
    assert isinstance(opened, OpenStream)
    assert (opened.route, opened.call.epoch, opened.call.from_lengths) == (A, 1, (2,))
    assert follower.go_on(121.0) == []


def test_who_pauses_while_it_looks_for_a_head_goes_on_looking(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    assert follower.pause() == []
    assert follower.go_on(0.2) == []
    assert kind(follower.granted(1, Grant(2, B, base(7, 8)), 0.3)) == ["OpenStream"]


def test_a_blip_is_not_a_death(follower: Follower) -> None:
    watch(follower, (0, 6), serves=True)
    follower.frame(2, tokens(9, start=2, step=5), 6.1)
    assert kind(watch(follower, (6.25, 12.5), serves=True)) == ["CloseStream", "OpenStream"]


def test_time_that_nobody_watched_is_no_silence(follower: Follower) -> None:
    for second in range(30, 330, 30):
        assert follower.tick(second, serves=True) == []


def test_a_head_that_lives_is_gone_on_with_and_nothing_is_thrown_away(follower: Follower) -> None:
    follower.tick(1.0, serves=False)
    (opened,) = follower.granted(1, Grant(1, A, ()), 1.1)
    assert isinstance(opened, OpenStream)
    assert (opened.call.epoch, opened.call.from_lengths) == (1, (2,))
    assert kind(follower.frame(2, tokens(9, start=2, step=2), 1.2)) == ["Deliver"]
    assert follower.moves == 0


def test_who_waits_at_a_head_that_serves_is_never_out_of_time(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    follower.granted(1, Grant(2, B, base(7, 8)), 0.2)
    for second in range(1, 300):
        assert follower.frame(2, Progress(5, Phase.QUEUED), second) == []
        assert follower.tick(second, serves=True) == []


def test_a_crowd_does_not_ask_again_all_at_once() -> None:
    asked_s = set()
    for number in range(20):
        request = replace(REQUEST, generation_id=f"g{number}")
        follower = Follower(request, FollowerSettings())
        follower.begin(None, 0.0)
        follower.not_granted(1, Unavailable("away"), 0.0)
        asked_s.add(next(ms for ms in range(1000) if follower.tick(ms / 1000, serves=False)))
    assert min(asked_s) >= 100
    assert max(asked_s) <= 200
    assert len(asked_s) > 10


@pytest.mark.parametrize(
    "reason", [CloseReason.DISSOLVED, CloseReason.FENCED, CloseReason.FINISHED]
)
def test_a_head_that_cannot_go_on_is_left(follower: Follower, reason: CloseReason) -> None:
    asked = follower.frame(1, Closed(reason, (2,)), 0.1)[-1]
    assert isinstance(asked, AskResume)
    assert asked.question.left_formation_id == "f-a"
    assert asked.question.reason is LeaveReason.REFUSED


def test_a_planned_move_complains_of_nobody(follower: Follower) -> None:
    asked = follower.frame(1, Closed(CloseReason.MOVED, (2,)), 0.1)[-1]
    assert isinstance(asked, AskResume)
    assert (asked.question.left_formation_id, asked.question.reason) == ("", None)


def test_a_grant_goes_on_from_its_base_and_compares_what_lies_beyond(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    (opened,) = follower.granted(1, Grant(2, B, base(7)), 0.2)
    assert isinstance(opened, OpenStream)
    assert (opened.call.epoch, opened.call.held, opened.call.from_lengths) == (2, base(7), (1,))
    assert follower.frame(2, tokens(8, start=1), 0.3) == []
    assert kind(follower.frame(2, tokens(9, start=2), 0.3)) == ["Deliver"]
    assert follower.moves == 1


def test_a_longer_base_is_delivered(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    actions = follower.granted(1, Grant(2, B, base(7, 8, 9)), 0.2)
    assert actions[0] == Deliver((Gain(0, 2, 3),))


def test_grants_in_vain_are_asked_for_ever_more_slowly(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    follower.granted(1, Grant(2, B, base(7, 8)), 0.2)
    assert follower.broken(2, FailedPrecondition("gone"), 0.2) == [CloseStream(2)]
    assert follower.tick(0.25, serves=False) == []
    assert kind(follower.tick(0.41, serves=False)) == ["AskResume"]


def test_a_finished_journal_ends_the_reader(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    actions = follower.granted(1, Grant(2, None, base(7, 8, 2)), 0.2)
    assert kind(actions) == ["Deliver", "End"]
    assert error_of(actions) is None


def test_a_journal_that_ends_too_early_is_an_error(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    assert isinstance(error_of(follower.granted(1, Grant(2, None, base(7)), 0.2)), DataLoss)


def test_answers_and_frames_of_old_numbers_mean_nothing(follower: Follower) -> None:
    follower.broken(1, Unavailable("gone"), 0.5)
    assert follower.frame(1, tokens(9, start=2), 0.6) == []
    assert follower.broken(1, Unavailable("gone"), 0.6) == []
    assert follower.granted(1, Grant(2, B, ()), 0.6) == []
    assert follower.not_granted(1, Unavailable("gone"), 0.6) == []


def test_an_unanswered_question_is_asked_again_until_time_is_up(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    assert follower.not_granted(1, Unavailable("away"), 0.2) == []
    assert follower.tick(0.25, serves=False) == []
    assert kind(follower.tick(0.41, serves=False)) == ["AskResume"]
    follower.not_granted(2, Unavailable("away"), 0.4)
    assert follower.tick(0.5, serves=False) == []
    assert isinstance(error_of(follower.tick(60.2, serves=False)), Unavailable)


@pytest.mark.parametrize("error", [Cancelled("x"), Diverged(1, 2, 3), InvalidArgument("x")])
def test_what_asking_again_does_not_cure_ends_the_reader(
    follower: Follower, error: ShuntError
) -> None:
    follower.frame(1, Closed(CloseReason.DISSOLVED, (2,)), 0.1)
    assert error_of(follower.not_granted(1, error, 0.2)) is error


@pytest.mark.parametrize(
    ("reason", "error"),
    [(CloseReason.SUPERSEDED, Superseded), (CloseReason.DIVERGED, Diverged)],
)
def test_some_closes_are_the_end(
    follower: Follower, reason: CloseReason, error: type[ShuntError]
) -> None:
    assert isinstance(error_of(follower.frame(1, Closed(reason, (2,)), 0.1)), error)


def test_a_broken_stream_is_a_blip_at_first(follower: Follower) -> None:
    assert kind(follower.broken(1, Unavailable("gone"), 0.1)) == ["CloseStream", "OpenStream"]
    assert kind(follower.broken(2, Unavailable("gone"), 0.1)) == ["CloseStream", "AskResume"]


def test_a_gap_in_a_stream_is_a_broken_stream(follower: Follower) -> None:
    assert kind(follower.frame(1, tokens(9, start=5), 0.1)) == ["CloseStream", "OpenStream"]


def test_a_status_of_cancelled_is_asked_about(follower: Follower) -> None:
    assert kind(follower.broken(1, Cancelled("server shut down"), 0.1))[-1] == "AskResume"


def test_a_full_head_refuses_a_new_generation_for_good() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    follower.begin(A, 0.0)
    error = ResourceExhausted("full")
    assert error_of(follower.broken(1, error, 0.1)) is error


def test_a_full_head_does_not_end_what_has_begun(follower: Follower) -> None:
    assert kind(follower.broken(1, ResourceExhausted("full"), 0.1))[-1] == "AskResume"


def test_a_full_head_does_not_end_what_was_accepted_and_has_no_ids_yet() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    follower.begin(A, 0.0)
    follower.frame(1, Accepted("f-a", "i-a", "exact", (0,)), 0.0)
    follower.broken(1, Unavailable("a blip"), 0.1)
    assert kind(follower.broken(2, ResourceExhausted("full"), 0.2))[-1] == "AskResume"


def test_a_stop_string_ends_the_choice_everywhere(follower: Follower) -> None:
    actions = follower.stopped(0, 2)
    assert actions[0] == SendCancel("g", 0, CancelReason.STOP, 2, A)
    assert kind(actions) == ["SendCancel", "CloseStream", "End"]


def test_a_stop_of_one_choice_is_presented_with_its_ids() -> None:
    two = GenerationRequest("g", MODEL, (1,), Sampling(max_tokens=9), choices=2)
    follower = Follower(two, FollowerSettings())
    follower.begin(A, 0.0)
    follower.frame(1, tokens(7), 0.0)
    assert kind(follower.stopped(0, 1)) == ["SendCancel"]
    assert follower.frame(1, tokens(8, start=1), 0.1) == []
    asked = follower.frame(1, Closed(CloseReason.MOVED, (2, 0)), 0.1)[-1]
    assert isinstance(asked, AskResume)
    assert asked.question.held == (TokenSpan(0, 0, (7, 8), (), FinishReason.STOP),)


def test_a_cancel_is_told_to_controller_and_head(follower: Follower) -> None:
    actions = follower.cancel()
    assert actions[0] == SendCancel("g", None, CancelReason.CLIENT, None, A)
    assert isinstance(error_of(actions), Cancelled)


def test_a_client_that_is_gone_cancels_nothing(follower: Follower) -> None:
    assert follower.detach() == [CloseStream(1)]
    assert follower.client_gone(True) == []
    assert follower.tick(99.0, serves=False) == []


@pytest.mark.parametrize("resumable", [True, False])
def test_the_head_is_told_that_a_client_is_gone_and_whether_it_can_resume(
    follower: Follower, resumable: bool
) -> None:
    told = SendDetach("g", 1, A, resumable, "me.1")
    assert follower.client_gone(resumable) == [CloseStream(1), told]
    assert follower.client_gone(resumable) == []


def test_a_reader_that_was_superseded_tells_nothing(follower: Follower) -> None:
    follower.frame(1, Closed(CloseReason.SUPERSEDED, (0, 0)), 0.1)
    assert follower.client_gone(False) == []


def view(state: GenerationState, head: Route | None, *ids: int) -> GenerationView:
    return GenerationView(REQUEST, base(*ids), 3, head, state)


def test_another_reader_goes_on_at_the_head_that_has_it() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    delivered, opened = follower.rejoin(view(GenerationState.OPEN, A, 7), 0.0)
    assert delivered == Deliver((Gain(0, 0, 1),))
    assert isinstance(opened, OpenStream)
    assert (opened.call.epoch, opened.call.from_lengths) == (3, (1,))


def test_another_reader_asks_where_to_go_on() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    actions = follower.rejoin(view(GenerationState.OPEN, None, 7), 0.0)
    assert kind(actions) == ["Deliver", "AskResume"]


def test_another_reader_of_what_has_ended_gets_it_all() -> None:
    follower = Follower(REQUEST, FollowerSettings())
    actions = follower.rejoin(view(GenerationState.FINISHED, None, 7, 2), 0.0)
    assert kind(actions) == ["Deliver", "End"]
    cancelled = Follower(REQUEST, FollowerSettings())
    actions = cancelled.rejoin(view(GenerationState.CANCELLED, None, 7), 0.0)
    assert isinstance(error_of(actions), Cancelled)


def test_a_choice_that_got_stuck_is_an_error_behind_what_was_said(follower: Follower) -> None:
    stuck = Tokens((TokenSpan(0, 2, (9,), finish_reason=FinishReason.GRAMMAR),), 2)
    actions = follower.frame(1, stuck, 0.1)
    assert actions[0] == Deliver((Gain(0, 2, 3),))
    error = error_of(actions)
    assert isinstance(error, InvalidArgument)
    assert error.field == "grammar"


def test_a_route_that_hands_on_is_told_so_and_the_controller_that_it_did() -> None:
    follower = Follower(REQUEST, FollowerSettings(), "me")
    (opened,) = follower.begin(replace(A, hands_on=True), 0.0)
    assert isinstance(opened, OpenStream)
    assert opened.call.hand_on
    follower.frame(1, Accepted("f-a", "i-a", "exact", (0,)), 0.0)
    follower.frame(1, tokens(7), 0.1)
    asked = follower.frame(1, Closed(CloseReason.HANDED_ON, (1,)), 0.1)[-1]
    assert isinstance(asked, AskResume)
    question = asked.question
    assert (question.handed_on, question.reason, question.left_formation_id) == (True, None, "")
    follower.granted(1, Grant(2, B, base(7)), 0.2)
    follower.frame(2, Accepted("f-b", "i-b", "exact", (1,)), 0.3)
    follower.frame(2, tokens(8, start=1), 0.3)
    asked = follower.frame(2, Closed(CloseReason.MOVED, (2,)), 0.4)[-1]
    assert isinstance(asked, AskResume)
    assert not asked.question.handed_on
