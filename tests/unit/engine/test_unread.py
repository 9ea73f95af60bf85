"""What a head does with generations that nobody reads."""

from dataclasses import replace

import pytest

from services.common.errors import ResourceExhausted, Superseded
from services.common.exchange import (
    Accepted,
    Checkpoint,
    CheckpointResult,
    Closed,
    CloseReason,
    GenerateCall,
    Left,
)
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.core.actions import (
    NewToken,
    SequenceKey,
    SetUnread,
    StopSequence,
    WakeCheckpoints,
)
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings

REQUEST = GenerationRequest("g", ModelRef("m", "d"), (1, 2), Sampling(max_tokens=50))
KEY = SequenceKey("g", 1, 0)
CALL = GenerateCall(REQUEST, 1, "f1", reader="a")
OTHERS = replace(CALL, reader="b")
"""Of another reader."""


@pytest.fixture
def head() -> Generations:
    return begun(HeadSettings())


def begun(settings: HeadSettings) -> Generations:
    """A head with one generation, one token and one reader, which the journal knows of."""
    head = Generations("i1", settings)
    head.form("f1", "exact", 0.0)
    head.generate(1, CALL, 0.0)
    head.stepped(1, [NewToken(KEY, 0, 7)], 0.0)
    journaled(head, 0.0)
    return head


def journaled(head: Generations, now_s: float) -> list[Checkpoint]:
    """What is due, taken by the journal in full."""
    sent = head.take_checkpoints(1, now_s)
    for checkpoint in sent:
        lengths = head._held[checkpoint.generation_id].lengths
        result = CheckpointResult(checkpoint.generation_id, checkpoint.epoch, lengths)
        head.checkpoint_results(1, [result], now_s)
    return list(sent)


def left(*, resumable: bool, name: str = "g", epoch: int = 1) -> Left:
    """The client of the first reader is gone."""
    return Left(name, epoch, "a", resumable)


def other(name: str) -> GenerateCall:
    return replace(CALL, request=replace(REQUEST, generation_id=name))


def test_an_unread_generation_yields_behind_a_blip_and_the_journal_is_told(
    head: Generations,
) -> None:
    assert head.detach(1, 1.0) == []
    assert head.tick(1.2) == []
    assert head.tick(1.25) == [SetUnread(KEY, True), WakeCheckpoints()]
    assert head.tick(1.3) == [], "it is said once"
    (told,) = journaled(head, 1.3)
    assert told.unread
    assert journaled(head, 9.0) == []


def test_a_reader_that_attaches_anew_within_a_blip_changes_nothing(head: Generations) -> None:
    head.detach(1, 1.0)
    actions = head.generate(2, CALL, 1.1)
    assert SetUnread(KEY, False) not in actions
    assert head.tick(5.0) == []
    assert journaled(head, 5.0) == []


def test_a_reader_that_comes_back_gives_the_generation_its_turn_back(head: Generations) -> None:
    head.detach(1, 1.0)
    head.tick(2.0)
    journaled(head, 2.0)
    assert SetUnread(KEY, False) in head.generate(2, CALL, 3.0)
    (told,) = journaled(head, 3.0)
    assert not told.unread
    assert head.tick(60.0) == []


def test_who_reads_for_nobody_takes_no_place_of_a_clients_reader(head: Generations) -> None:
    nobodys = replace(OTHERS, for_nobody=True)
    with pytest.raises(Superseded):
        head.generate(2, nobodys, 1.0)
    assert isinstance(head.next_frame(1, 1.0), Accepted)
    head.client_gone(left(resumable=True), 1.1)
    head.generate(3, nobodys, 1.2)
    head.generate(4, replace(nobodys, reader="c"), 1.3)
    assert head.next_frame(3, 1.3) == Closed(CloseReason.SUPERSEDED, (1,)), "of two such the newer"
    head.generate(5, replace(CALL, reader="d"), 1.4)
    assert head.next_frame(4, 1.4) == Closed(CloseReason.SUPERSEDED, (1,))


def test_a_journal_that_started_anew_is_told_again_of_what_is_unread(head: Generations) -> None:
    head.detach(1, 1.0)
    head.tick(2.0)
    journaled(head, 2.0)
    head.checkpoint_stream_opened()
    (told,) = journaled(head, 2.0)
    assert told.unread


def test_a_reader_with_nothing_to_come_back_by_leaves_a_parked_generation(
    head: Generations,
) -> None:
    head.detach(1, 1.0)
    assert StopSequence(KEY) in head.client_gone(left(resumable=False), 1.0)
    head.sequence_stopped(KEY, 1.2)
    (sealed,) = journaled(head, 1.2)
    assert sealed.sealed
    assert sealed.unread
    head.tick(1.3)
    assert not head._held


def test_it_is_parked_as_well_while_its_stream_is_yet_to_be_closed(head: Generations) -> None:
    assert StopSequence(KEY) in head.client_gone(left(resumable=False), 1.0)
    assert StopSequence(KEY) not in head.client_gone(left(resumable=False), 1.1)
    assert StopSequence(KEY) not in head.detach(1, 1.2)
    head.sequence_stopped(KEY, 1.3)
    (sealed,) = journaled(head, 1.3)
    assert (sealed.sealed, sealed.unread) == (True, True)


def test_the_journal_is_told_too_of_what_ended_before_its_reader_had_it(head: Generations) -> None:
    head.stepped(2, [NewToken(KEY, position, 7) for position in range(1, 50)], 0.9)
    head.detach(1, 1.0)
    assert head.client_gone(left(resumable=False), 1.0) == [WakeCheckpoints()]
    (told,) = journaled(head, 1.0)
    assert (told.sealed, told.unread) == (True, True)
    assert head.client_gone(left(resumable=False), 1.1) == [], "it is the journal's"


def test_a_client_that_is_known_to_be_gone_is_no_blip(head: Generations) -> None:
    head.detach(1, 1.0)
    gone = left(resumable=True)
    assert head.client_gone(gone, 1.0) == [SetUnread(KEY, True), WakeCheckpoints()]
    assert head.client_gone(gone, 1.0) == head.tick(1.5) == []
    assert StopSequence(KEY) in head.tick(11.0)


def test_it_yields_before_its_stream_is_closed_and_is_parked_behind_that(head: Generations) -> None:
    """A crowd's streams are a while in closing; who waits must not wait for that."""
    gone = left(resumable=True)
    assert head.client_gone(gone, 1.0) == [SetUnread(KEY, True), WakeCheckpoints()]
    assert head.client_gone(gone, 1.1) == head.detach(1, 3.0) == head.tick(12.9) == []
    assert StopSequence(KEY) in head.tick(13.0)


def test_a_reader_that_comes_before_the_stream_is_closed_has_its_turn_back(
    head: Generations,
) -> None:
    head.client_gone(left(resumable=True), 1.0)
    assert SetUnread(KEY, False) in head.generate(2, OTHERS, 1.1)
    assert head.detach(1, 1.2) == head.tick(60.0) == []


@pytest.mark.parametrize("resumable", [True, False])
def test_the_word_of_a_former_reader_does_nothing_to_a_newer_one(
    head: Generations, resumable: bool
) -> None:
    head.generate(2, OTHERS, 1.0)
    assert head.client_gone(left(resumable=resumable), 1.1) == []
    assert head.detach(1, 1.2) == []
    assert head.client_gone(left(resumable=resumable), 1.3) == []
    assert head._held["g"].reader is not None
    assert head.detach(2, 2.0) == [], "that one may be a blip"
    assert head.client_gone(left(resumable=resumable), 2.1) == []


def test_a_word_about_another_epoch_or_nobody_means_nothing(head: Generations) -> None:
    assert head.client_gone(left(resumable=False, epoch=2), 1.0) == []
    assert head.client_gone(left(resumable=False, name="nobody"), 1.0) == []
    assert head.detach(1, 1.0) == []


def test_a_reader_that_comes_while_its_generation_is_being_parked_is_sent_on(
    head: Generations,
) -> None:
    head.client_gone(left(resumable=False), 1.0)
    head.detach(1, 1.0)
    head.generate(2, OTHERS, 1.1)
    head.sequence_stopped(KEY, 1.2)
    frames = [head.next_frame(2, 1.2) for _ in range(3)]
    assert frames[-1] == Closed(CloseReason.MOVED, (1,))
    (sealed,) = journaled(head, 1.2)
    assert (sealed.sealed, sealed.unread) == (True, False)


def test_an_unread_generation_makes_room_for_one_that_is_read() -> None:
    head = begun(HeadSettings(max_generations=2))
    head.generate(2, other("h"), 0.0)
    with pytest.raises(ResourceExhausted):
        head.generate(3, other("i"), 0.0)
    head.detach(2, 1.0)
    head.detach(1, 2.0)
    head.tick(3.0)
    assert StopSequence(SequenceKey("h", 1, 0)) in head.generate(3, other("i"), 3.0)
    assert StopSequence(KEY) in head.generate(4, other("j"), 3.0)
    with pytest.raises(ResourceExhausted):
        head.generate(5, other("k"), 3.0)
