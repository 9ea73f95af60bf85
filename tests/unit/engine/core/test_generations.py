from collections.abc import Iterable
from dataclasses import replace

import pytest

from services.common.errors import (
    AlreadyExists,
    Cancelled,
    Diverged,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    StaleEpoch,
)
from services.common.exchange import (
    Accepted,
    CheckpointRefusal,
    CheckpointResult,
    Closed,
    CloseReason,
    Frame,
    GenerateCall,
    Left,
    Phase,
    Progress,
    Tokens,
)
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    ResponseTerms,
    Sampling,
    TokenSpan,
)
from services.engine.core.actions import (
    Action,
    DropSequence,
    KeepBlocks,
    NewToken,
    SequenceKey,
    SetUnread,
    StartSequence,
    StopSequence,
    Wake,
)
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings

REQUEST = GenerationRequest(
    "g", ModelRef("m", "d"), (1, 2), Sampling(max_tokens=50, eos_token_ids=(2,))
)
KEY = SequenceKey("g", 1, 0)
OTHER_CHOICE = GenerateCall(REQUEST, 1, "f1", (TokenSpan(3, 0, (1,)),), ())


@pytest.fixture
def head() -> Generations:
    head = Generations("i1", HeadSettings())
    head.form("f1", "exact", 0.0)
    return head


def call(epoch: int = 1, held: Iterable[int] = (), **changes: object) -> GenerateCall:
    ids = tuple(held)
    spans = (TokenSpan(0, 0, ids),) if ids else ()
    whole = GenerateCall(REQUEST, epoch, "f1", spans, (len(ids),))
    return replace(whole, **changes)  # type: ignore[arg-type]


def frames(head: Generations, reader: int, now_s: float = 0.0) -> list[Frame]:
    """All that is due."""
    due = []
    while (frame := head.next_frame(reader, now_s)) is not None:
        due.append(frame)
    return due


def kinds(actions: list[Action], kind: type) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def step(head: Generations, *ids: int, start: int = 0, key: SequenceKey = KEY) -> list[Action]:
    actions: list[Action] = []
    for position, token in enumerate(ids, start):
        actions += head.stepped(position + 1, [NewToken(key, position, token)], 0.0)
    return actions


def answer(head: Generations, now_s: float = 0.0, **changes: object) -> list[Action]:
    """The journal takes what is due, in full."""
    results = []
    for checkpoint in head.take_checkpoints(1, now_s):
        lengths = tuple(head._held[checkpoint.generation_id].lengths)
        result = CheckpointResult(checkpoint.generation_id, checkpoint.epoch, lengths)
        results.append(replace(result, **changes))  # type: ignore[arg-type]
    return head.checkpoint_results(1, results, now_s)


def test_a_call_starts_a_sequence_and_its_first_checkpoint_carries_the_request(
    head: Generations,
) -> None:
    actions = head.generate(1, call(), 0.0)
    assert kinds(actions, StartSequence) == [
        StartSequence(KEY, replace(REQUEST, numerics_class="exact"), ())
    ]
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert (checkpoint.epoch, checkpoint.incarnation, checkpoint.formation_id) == (1, "i1", "f1")
    assert checkpoint.request is not None
    assert frames(head, 1) == [Accepted("f1", "i1", "exact", (0,))]


def test_tokens_reach_the_reader_once_and_the_journal_coalesced(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    answer(head)
    assert Wake(1) in step(head, 7, 8)
    (tokens,) = frames(head, 1)
    assert isinstance(tokens, Tokens)
    assert tokens.spans == (TokenSpan(0, 0, (7, 8)),)
    assert frames(head, 1) == []
    assert head.take_checkpoints(1, 0.01) == ()
    (checkpoint,) = head.take_checkpoints(1, 0.06)
    assert checkpoint.spans == (TokenSpan(0, 0, (7, 8)),)
    assert checkpoint.request is None


def test_a_late_answer_to_an_earlier_message_says_nothing_of_the_seal(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    answer(head)
    step(head, 7)
    assert len(head.take_checkpoints(2, 0.1)) == 1
    head.drain("f1", 0.2)
    head.sequence_stopped(KEY, 0.2)
    (sealed,) = head.take_checkpoints(3, 1.2)
    assert sealed.sealed
    head.checkpoint_results(2, [CheckpointResult("g", 1, (1,))], 1.3)
    assert head.drained("f1", 9.0) is None
    head.checkpoint_results(3, [CheckpointResult("g", 1, (1,))], 1.4)
    assert head.drained("f1", 9.0) == 1


def test_a_journal_that_answers_later_than_it_is_asked_again_still_seals(
    head: Generations,
) -> None:
    head.generate(1, call(), 0.0)
    answer(head)
    step(head, 7)
    head.drain("f1", 0.0)
    head.sequence_stopped(KEY, 0.0)
    assert len(head.take_checkpoints(2, 0.0)) == 1
    assert len(head.take_checkpoints(3, 1.5)) == 1
    head.checkpoint_results(2, [CheckpointResult("g", 1, (1,))], 2.0)
    assert head.drained("f1", 99.0) == 1


def test_a_drain_counts_all_it_sealed_however_late_and_often_it_is_asked(
    head: Generations,
) -> None:
    for number, name in enumerate(("g", "h"), 1):
        head.generate(number, replace(call(), request=replace(REQUEST, generation_id=name)), 0.0)
    answer(head)
    head.drain("f1", 0.0)
    for name in ("g", "h"):
        head.sequence_stopped(SequenceKey(name, 1, 0), 0.0)
    assert len(head.take_checkpoints(2, 0.0)) == 2
    head.checkpoint_results(2, [CheckpointResult("g", 1, (0,))], 0.0)
    for reader in (1, 2):
        head.detach(reader, 0.0)
    head.tick(0.05)
    head.checkpoint_results(2, [CheckpointResult("h", 1, (0,))], 0.06)
    assert head.drained("f1", 0.06) == 2
    head.tick(0.1)
    assert head.drain("f1", 0.1) == []
    assert head.drained("f1", 0.1) == 2


def test_what_piled_up_goes_to_the_journal_in_small_messages_and_has_a_limit() -> None:
    limits = HeadSettings(max_unjournaled=5, checkpoints_at_once=2)
    head = Generations("i1", limits)
    head.form("f1", "exact", 0.0)
    for number in range(5):
        request = replace(REQUEST, generation_id=str(number))
        head.generate(number, replace(call(), request=request), 0.0)
    with pytest.raises(ResourceExhausted, match="journal"):
        head.generate(9, replace(call(), request=replace(REQUEST, generation_id="x")), 0.0)
    assert [len(head.take_checkpoints(n, 0.0)) for n in range(4)] == [2, 2, 1, 0]
    assert [len(head.take_checkpoints(n, 5.0)) for n in range(4)] == [2, 2, 1, 0]


def test_the_head_names_its_own_arithmetic_and_keeps_the_first_one_of_the_generation(
    head: Generations,
) -> None:
    request = replace(REQUEST, numerics_class="another")
    head.generate(1, replace(call(), request=request, epoch=2), 0.0)
    assert frames(head, 1) == [Accepted("f1", "i1", "exact", (0,))]
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert checkpoint.request == request


def test_a_gap_ends_the_generation_like_a_difference(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    head.stepped(1, [NewToken(KEY, 3, 7)], 0.0)
    assert frames(head, 1) == [Closed(CloseReason.DIVERGED, (0,))]
    assert head.diverged == 1


def test_a_reader_without_news_gets_a_sign_of_life(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    head.sequence_phase(KEY, Phase.PREFILL)
    head.stepped(9, [], 0.0)
    assert head.next_frame(1, 0.24) is None
    assert not head.is_silent(1, 0.24)
    assert head.is_silent(1, 0.26)
    assert head.next_frame(1, 0.26) == Progress(9, Phase.PREFILL)


def test_a_queued_reader_gets_signs_of_life_more_seldom(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    assert head.next_frame(1, 1.9) is None
    assert not head.is_silent(1, 1.9)
    assert head.next_frame(1, 2.0) == Progress(0, Phase.QUEUED)
    assert not head.is_silent(99, 2.0)


def test_an_end_of_sequence_finishes_and_is_kept_for_who_comes_late(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    actions = step(head, 7, 2)
    assert StopSequence(KEY) in actions
    assert frames(head, 1)[-1] == Closed(CloseReason.FINISHED, (2,))
    head.generate(2, call(), 1.0)
    tokens, closed = frames(head, 2, 1.0)[1:]
    assert isinstance(tokens, Tokens)
    assert tokens.spans == (TokenSpan(0, 0, (7, 2), (), FinishReason.STOP),)
    assert closed == Closed(CloseReason.FINISHED, (2,))


def test_a_second_reader_ends_the_first(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    assert Wake(1) in head.generate(2, call(), 0.0)
    assert frames(head, 1) == [Closed(CloseReason.SUPERSEDED, (0,))]
    assert isinstance(frames(head, 2)[0], Accepted)


def test_a_reader_that_goes_on_behind_what_is_held_is_told_from_the_length(
    head: Generations,
) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    head.generate(2, call(from_lengths=(5,)), 0.0)
    frames(head, 2)
    step(head, 8, start=1)
    (tokens,) = frames(head, 2)
    assert isinstance(tokens, Tokens)
    assert tokens.spans[0].start == 1


def test_a_call_for_another_formation_or_epoch_is_refused(head: Generations) -> None:
    with pytest.raises(FailedPrecondition):
        head.generate(1, call(formation_id="f0"), 0.0)
    head.generate(1, call(2), 0.0)
    with pytest.raises(StaleEpoch):
        head.generate(2, call(1), 0.0)
    with pytest.raises(StaleEpoch):
        head.generate(2, call(2, formation_id="f0"), 0.0)


def test_an_attach_with_other_ids_or_another_request_is_refused(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    with pytest.raises(Diverged):
        head.generate(2, call(held=(8,)), 0.0)
    with pytest.raises(AlreadyExists):
        head.generate(2, call(request=replace(REQUEST, prompt_ids=(3,))), 0.0)
    with pytest.raises(InvalidArgument):
        head.generate(2, OTHER_CHOICE, 0.0)


def test_held_ids_with_a_gap_are_refused(head: Generations) -> None:
    with pytest.raises(InvalidArgument):
        head.generate(1, GenerateCall(REQUEST, 2, "f1", (TokenSpan(0, 4, (1,)),), ()), 0.0)


def test_a_resumed_generation_goes_on_behind_its_base(head: Generations) -> None:
    actions = head.generate(1, call(3, held=(7, 8)), 0.0)
    (start,) = kinds(actions, StartSequence)
    assert isinstance(start, StartSequence)
    assert start.output_ids == (7, 8)
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert checkpoint.spans == ()


def test_a_base_that_has_ended_runs_nothing(head: Generations) -> None:
    actions = head.generate(1, call(2, held=(7, 2)), 0.0)
    assert kinds(actions, StartSequence) == []
    assert frames(head, 1)[-1] == Closed(CloseReason.FINISHED, (2,))


def test_a_newer_epoch_at_the_same_head_replaces_the_old_one(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    actions = head.generate(2, call(2), 0.0)
    assert StopSequence(KEY) in actions
    assert frames(head, 1)[-1] == Closed(CloseReason.SUPERSEDED, (1,))
    assert step(head, 8, start=1) == []
    assert head._held["g"].lengths == (0,)


def test_a_drain_seals_behind_the_step_in_flight(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    step(head, 7)
    answer(head)
    assert StopSequence(KEY) in head.drain("f1", 0.0)
    assert head.drain("f1", 0.0) == []
    with pytest.raises(FailedPrecondition):
        head.generate(9, call(request=replace(REQUEST, generation_id="h")), 0.0)
    step(head, 8, start=1)
    assert all(not isinstance(frame, Closed) for frame in frames(head, 1))
    head.sequence_stopped(KEY, 0.0)
    assert head.drained("f1", 0.0) is None
    assert frames(head, 1)[-1] == Closed(CloseReason.MOVED, (2,))
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert checkpoint.sealed
    head.checkpoint_results(1, [CheckpointResult("g", 1, (2,))], 0.0)
    assert head.drained("f1", 0.0) == 1


def test_a_drain_lets_those_run_on_that_it_names(head: Generations) -> None:
    other = replace(REQUEST, generation_id="h")
    head.generate(1, call(), 0.0)
    head.generate(2, call(request=other), 0.0)
    assert [action for action in head.drain("f1", 0.0, {"h"}) if isinstance(action, StopSequence)]
    head.sequence_stopped(KEY, 0.0)
    assert frames(head, 1)[-1] == Closed(CloseReason.MOVED, (0,))
    assert all(not isinstance(frame, Closed) for frame in frames(head, 2))
    (first, _) = head.take_checkpoints(1, 0.0)
    assert first.sealed
    head.checkpoint_results(1, [CheckpointResult("g", 1, (0,))], 0.0)
    assert head.drained("f1", 0.0, {"h"}) == 1
    assert head.drained("f1", 0.0) is None, "the other one runs"
    with pytest.raises(FailedPrecondition):
        head.generate(9, call(request=replace(REQUEST, generation_id="i")), 0.0)
    assert head.drain("f1", 5.0, {"h"}) == []
    key = SequenceKey("h", 1, 0)
    assert StopSequence(key) in head.drain("f1", 9.0)
    head.sequence_stopped(key, 9.0)
    head.checkpoint_stream_opened()
    head.take_checkpoints(2, 9.0)
    head.checkpoint_results(2, [CheckpointResult("h", 1, (0,))], 9.0)
    assert head.drained("f1", 9.1) is None, "its reader has a second from when it was sealed"
    assert head.drained("f1", 10.1) == 2


def test_a_drain_of_another_formation_is_refused(head: Generations) -> None:
    with pytest.raises(FailedPrecondition):
        head.drain("f0", 0.0)


def test_a_drain_waits_for_readers_but_not_for_ever(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    head.drain("f1", 0.0)
    head.sequence_stopped(KEY, 0.0)
    answer(head)
    assert head.drained("f1", 0.5) is None
    assert head.drained("f1", 1.1) == 1


def test_a_dissolved_formation_seals_what_is_known(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    actions = head.dissolve("f1", 0.0)
    assert DropSequence(KEY) in actions
    assert frames(head, 1)[-1] == Closed(CloseReason.DISSOLVED, (1,))
    assert step(head, 8, start=1) == []
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert checkpoint.sealed
    assert checkpoint.spans == (TokenSpan(0, 0, (7,)),)
    assert head.dissolve("f1", 0.0) == []


def test_a_new_formation_ends_the_one_before(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    assert head.form("f1", "exact", 0.0) == []
    assert DropSequence(KEY) in head.form("f2", "exact", 0.0)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (CheckpointRefusal.STALE_EPOCH, CloseReason.FENCED),
        (CheckpointRefusal.UNKNOWN_FORMATION, CloseReason.FENCED),
        (CheckpointRefusal.DIVERGED, CloseReason.DIVERGED),
        (CheckpointRefusal.ENDED, CloseReason.CANCELLED),
    ],
)
def test_a_refused_head_stops(
    head: Generations, refusal: CheckpointRefusal, reason: CloseReason
) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    step(head, 7)
    assert StopSequence(KEY) in answer(head, refusal=refusal)
    assert frames(head, 1) == [Closed(reason, (1,))]
    assert step(head, 8, start=1) == []


def test_an_answer_for_another_epoch_or_generation_means_nothing(head: Generations) -> None:
    head.generate(1, call(2), 0.0)
    refusal = CheckpointRefusal.STALE_EPOCH
    assert head.checkpoint_results(1, [CheckpointResult("g", 1, (0,), refusal)], 0.0) == []
    assert head.checkpoint_results(1, [CheckpointResult("x", 1, (0,), refusal)], 0.0) == []


def test_a_shorter_journal_is_sent_again_from_its_length(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7, 8, 9)
    head.take_checkpoints(1, 0.0)
    head.checkpoint_results(1, [CheckpointResult("g", 1, (1,))], 0.0)
    (checkpoint,) = head.take_checkpoints(1, 0.1)
    assert checkpoint.spans == (TokenSpan(0, 1, (8, 9)),)


def test_a_checkpoint_without_an_answer_is_sent_again(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    assert len(head.take_checkpoints(1, 0.0)) == 1
    assert head.take_checkpoints(1, 0.5) == ()
    assert len(head.take_checkpoints(1, 1.0)) == 1
    head.checkpoint_stream_opened()
    assert len(head.take_checkpoints(1, 1.0)) == 1


def test_a_late_answer_changes_nothing_that_was_answered(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    answer(head)
    head.checkpoint_results(1, [CheckpointResult("g", 1, (1,))], 0.0)
    assert head.take_checkpoints(1, 1.0) == ()


def test_a_cancelled_generation_ends_and_is_remembered(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    assert StopSequence(KEY) in head.cancel("g", None, CancelReason.CLIENT, 0.0)
    assert frames(head, 1)[-1] == Closed(CloseReason.CANCELLED, (0,))
    with pytest.raises(Cancelled):
        head.generate(2, call(2), 0.0)
    head.cancel("unknown", None, CancelReason.CLIENT, 0.0)
    with pytest.raises(Cancelled):
        head.generate(2, call(request=replace(REQUEST, generation_id="unknown")), 0.0)


def test_a_stop_string_ends_one_choice_and_its_ids_stay_readable(head: Generations) -> None:
    two = replace(REQUEST, choices=2)
    head.generate(1, call(request=two), 0.0)
    step(head, 7)
    assert head.cancel("g", 0, CancelReason.STOP, 0.0)[0] == StopSequence(KEY)
    spans = frames(head, 1)[1].spans  # type: ignore[union-attr]
    assert spans[0] == TokenSpan(0, 0, (7,), (), FinishReason.STOP)
    assert head.open_generations == 1
    head.cancel("g", 1, CancelReason.CLIENT, 0.0)
    assert head.open_generations == 0
    assert head.cancel("g", 1, CancelReason.STOP, 0.0) == []
    assert head.cancel("unknown", 0, CancelReason.STOP, 0.0) == []
    head.generate(3, call(request=replace(two, generation_id="h")), 0.0)
    with pytest.raises(InvalidArgument):
        head.cancel("h", 7, CancelReason.STOP, 0.0)


def test_what_nobody_reads_is_parked_and_then_forgotten(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7)
    head.detach(1, 1.0)
    head.detach(1, 9.0)
    assert StopSequence(KEY) not in head.tick(10.9)
    assert StopSequence(KEY) in head.tick(11.0)
    head.sequence_stopped(KEY, 11.0)
    answer(head, 11.0)
    head.tick(11.0)
    with pytest.raises(StaleEpoch):
        head.generate(2, call(), 11.0)
    head.tick(100.0)
    assert not head._held
    assert not len(head._past)


@pytest.mark.parametrize("resumable", [None, False, True])
def test_what_runs_unread_keeps_its_place_and_the_journal_hears_that_nobody_reads_it(
    resumable: bool | None,
) -> None:
    head = Generations("i1", HeadSettings(max_generations=1))
    head.form("f1", "exact", 0.0)
    request = replace(REQUEST, response=ResponseTerms(True, True, "{}"))
    head.generate(1, call(request=request), 0.0)
    answer(head)
    if resumable is not None:
        head.client_gone(Left("g", 1, "", resumable), 1.0)
    actions = head.detach(1, 1.0) + head.tick(2.0) + head.tick(1000.0)
    assert not kinds(actions, SetUnread) + kinds(actions, StopSequence)
    (told,) = head.take_checkpoints(2, 1000.0)
    assert told.unread
    with pytest.raises(ResourceExhausted):
        head.generate(2, call(request=replace(REQUEST, generation_id="h")), 1000.0)
    step(head, 7)
    head.generate(3, call(request=request), 1001.0)
    assert frames(head, 3, 1001.0)[-1] == Tokens((TokenSpan(0, 0, (7,)),), 1)


def test_cancels_and_finished_generations_are_forgotten_in_time(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    step(head, 2)
    frames(head, 1)
    answer(head)
    head.cancel("x", None, CancelReason.CLIENT, 0.0)
    head.tick(59.0)
    assert "g" in head._held
    head.tick(60.0)
    assert not len(head._cancelled)
    assert head._held == {}


def test_cancels_of_generations_nobody_knows_take_no_more_than_their_room() -> None:
    head = Generations("i1", HeadSettings(max_remembered=100))
    head.form("f1", "exact", 0.0)
    for number in range(1000):
        head.cancel(str(number), None, CancelReason.CLIENT, 0.0)
    assert len(head._cancelled) == 100
    with pytest.raises(Cancelled):
        head.generate(1, call(request=replace(REQUEST, generation_id="999")), 0.0)


def test_too_many_generations_are_refused() -> None:
    head = Generations("i1", HeadSettings(max_generations=1))
    head.form("f1", "exact", 0.0)
    head.generate(1, call(), 0.0)
    with pytest.raises(ResourceExhausted):
        head.generate(2, call(request=replace(REQUEST, generation_id="h")), 0.0)


def test_a_token_that_differs_from_the_one_held_ends_the_generation(head: Generations) -> None:
    head.generate(1, call(), 0.0)
    frames(head, 1)
    step(head, 7)
    assert StopSequence(KEY) in head.stepped(2, [NewToken(KEY, 0, 9)], 0.0)
    assert head.diverged == 1
    assert frames(head, 1) == [Closed(CloseReason.DIVERGED, (1,))]


def test_steps_and_stops_of_unknown_sequences_mean_nothing(head: Generations) -> None:
    other = SequenceKey("x", 1, 0)
    assert head.stepped(1, [NewToken(other, 0, 1)], 0.0) == []
    assert head.sequence_stopped(other, 0.0) == []
    head.sequence_phase(other, Phase.DECODE)
    assert head.next_frame(99, 0.0) is None


def test_a_choice_that_is_stuck_ends_behind_its_ids_and_the_journal_is_told(
    head: Generations,
) -> None:
    head.generate(1, call(), 0.0)
    step(head, 7, 8)
    actions = head.stepped(3, [NewToken(KEY, 2, 0, stuck=True)], 0.0)
    assert StopSequence(KEY) in actions
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert checkpoint.spans == (TokenSpan(0, 0, (7, 8), finish_reason=FinishReason.GRAMMAR),)
    told = [frame for frame in frames(head, 1) if isinstance(frame, Tokens)]
    assert told[-1].spans[-1].finish_reason is FinishReason.GRAMMAR
    assert head.stepped(4, [NewToken(KEY, 2, 9)], 0.0) == []


def test_what_is_to_be_handed_on_is_sealed_behind_its_first_token(head: Generations) -> None:
    head.generate(1, call(hand_on=True), 0.0)
    frames(head, 1)
    answer(head)
    assert StopSequence(KEY) in step(head, 7)
    (kept,) = kinds(head.sequence_stopped(KEY, 0.0), KeepBlocks)
    request = replace(REQUEST, numerics_class="exact")
    assert kept == KeepBlocks((StartSequence(KEY, request, (7,)),))
    assert frames(head, 1)[-1] == Closed(CloseReason.HANDED_ON, (1,))
    (checkpoint,) = head.take_checkpoints(2, 0.0)
    assert checkpoint.sealed
    assert checkpoint.spans == (TokenSpan(0, 0, (7,)),)
    head.generate(2, call(2, request=replace(REQUEST, generation_id="h"), hand_on=True), 0.0)


def test_every_choice_has_its_first_token_by_then_or_has_ended(head: Generations) -> None:
    head.generate(1, call(request=replace(REQUEST, choices=3), hand_on=True), 0.0)
    assert not kinds(step(head, 7, 8), StopSequence)
    assert not kinds(step(head, 2, key=SequenceKey("g", 1, 1))[1:], StopSequence)
    stopped = kinds(step(head, 9, key=SequenceKey("g", 1, 2)), StopSequence)
    assert set(stopped) >= {StopSequence(KEY), StopSequence(SequenceKey("g", 1, 2))}


def test_what_ends_with_its_first_token_is_handed_on_to_nobody(head: Generations) -> None:
    head.generate(1, call(hand_on=True), 0.0)
    step(head, 2)
    assert not kinds(head.sequence_stopped(KEY, 0.0), KeepBlocks)
    assert frames(head, 1)[-1] == Closed(CloseReason.FINISHED, (1,))


def test_what_was_begun_elsewhere_is_not_handed_on_again(head: Generations) -> None:
    head.generate(1, call(2, held=(7,), hand_on=True), 0.0)
    assert not kinds(step(head, 8, 9, start=1), StopSequence)


def test_given_ids_are_no_first_token(head: Generations) -> None:
    request = replace(REQUEST, sampling=replace(REQUEST.sampling, given_ids=(7, 8)))
    head.generate(1, call(request=request, hand_on=True), 0.0)
    assert not kinds(step(head, 7, 8), StopSequence)
    assert kinds(step(head, 9, start=2), StopSequence)


def test_what_is_parked_before_its_first_token_is_not_handed_on(head: Generations) -> None:
    head.generate(1, call(hand_on=True), 0.0)
    head.detach(1, 0.0)
    head.tick(100.0)
    assert not kinds(head.sequence_stopped(KEY, 100.0), KeepBlocks)
