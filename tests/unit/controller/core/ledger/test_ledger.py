from dataclasses import replace

import pytest

from services.common.errors import (
    AlreadyExists,
    Cancelled,
    Diverged,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.common.exchange import (
    CheckpointRefusal,
    GenerationState,
    ResumeQuestion,
)
from services.common.generation import (
    CancelReason,
    FinishReason,
    ModelRef,
    TokenSpan,
)
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.records import (
    Ended,
    Granted,
    HeadBound,
    IdsAppended,
    Sealed,
)
from tests.unit.controller.core.ledger.book import REQUEST, A, B, Book, ids_of


def test_the_first_checkpoint_binds_the_epoch_to_its_head(book: Book) -> None:
    assert book.checkpoint().lengths == (0,)
    assert isinstance(book.records[0], HeadBound)
    other = book.checkpoint(7, incarnation="i-b")
    assert other.refusal is CheckpointRefusal.STALE_EPOCH
    assert book.checkpoint(7, formation_id="f-b").refusal is CheckpointRefusal.UNKNOWN_FORMATION
    assert len(book.records) == 1


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"request": None}])
def test_an_unknown_generation_begins_only_with_its_request_at_epoch_1(
    book: Book, changes: dict[str, object]
) -> None:
    assert book.checkpoint(**changes).refusal is CheckpointRefusal.STALE_EPOCH


def test_below_the_length_compares_at_it_appends_above_it_answers_the_length(book: Book) -> None:
    assert book.checkpoint(7, 8).lengths == (2,)
    assert book.checkpoint(8, 9, start=1).lengths == (3,)
    assert book.checkpoint(5, start=9).lengths == (3,)
    assert book.checkpoint(7, 8, 9).lengths == (3,)
    refused = book.checkpoint(6, start=1)
    assert (refused.refusal, refused.lengths) == (CheckpointRefusal.DIVERGED, (3,))
    assert [r.span.ids for r in book.records if isinstance(r, IdsAppended)] == [(7, 8), (9,)]


def test_a_first_checkpoint_for_a_choice_not_asked_for_binds_nothing(book: Book) -> None:
    with pytest.raises(InvalidArgument):
        book.checkpoint(spans=(TokenSpan(9, 0, (7,)),))
    assert book.checkpoint(7).lengths == (1,)
    book.restart()
    assert book.ledger.view("g", (A,), 0.0).reply.spans[0].ids == (7,)


def test_another_request_under_the_same_id_is_refused(book: Book) -> None:
    book.checkpoint()
    other = replace(REQUEST, model=ModelRef("m", "other"))
    assert book.checkpoint(request=other).refusal is CheckpointRefusal.DIVERGED


def test_nothing_is_added_behind_a_seal(book: Book) -> None:
    book.checkpoint(7, sealed=True)
    assert isinstance(book.records[-1], Sealed)
    assert book.checkpoint(7, sealed=True).refusal is None
    assert book.checkpoint(7, 8).refusal is CheckpointRefusal.STALE_EPOCH


def test_a_seal_behind_a_gap_does_not_seal(book: Book) -> None:
    book.checkpoint(7)
    book.checkpoint(9, start=5, sealed=True)
    assert not any(isinstance(record, Sealed) for record in book.records)


def test_a_grant_extends_what_the_journal_and_the_reader_have(book: Book) -> None:
    book.checkpoint(7, 8)
    grant = book.resume(7, 8, 9, left="f-a")
    assert (grant.epoch, grant.head, ids_of(grant)) == (2, B.route, (7, 8, 9))
    assert book.checkpoint(7, 8, 9).refusal is CheckpointRefusal.STALE_EPOCH
    shorter = book.resume(7, epoch=2, left="f-b", now_s=2.0)
    assert ids_of(shorter) == (7, 8, 9)


def test_a_grant_waits_for_the_disk(book: Book) -> None:
    outcome = book.ledger.resume(ResumeQuestion("g", 1, REQUEST, ()), (A,), 0.0)
    assert outcome is not None
    assert outcome.fsync
    assert isinstance(outcome.records[0], Granted)


def test_a_reader_with_other_ids_is_told_and_nothing_changes(book: Book) -> None:
    book.checkpoint(7)
    with pytest.raises(Diverged):
        book.resume(6)
    assert len(book.records) == 2


def test_a_generation_that_the_journal_never_saw_goes_on_with_its_request(book: Book) -> None:
    grant = book.resume(7)
    assert (grant.epoch, ids_of(grant)) == (2, (7,))
    with pytest.raises(NotFound):
        book.ledger.resume(ResumeQuestion("x", 1, None, ()), (A,), 0.0)
    other = replace(REQUEST, prompt_ids=(9,))
    with pytest.raises(AlreadyExists):
        book.ledger.resume(ResumeQuestion("g", 1, other, ()), (A,), 0.0)


def test_a_full_journal_refuses_new_generations() -> None:
    book = Book(max_generations=0)
    with pytest.raises(ResourceExhausted):
        book.resume()
    assert book.checkpoint().refusal is CheckpointRefusal.STALE_EPOCH


def test_a_finished_generation_grants_nothing(book: Book) -> None:
    book.checkpoint(7, 2, sealed=True)
    grant = book.resume(7)
    assert grant.finished
    assert grant.base == (TokenSpan(0, 0, (7, 2), (), FinishReason.STOP),)


def test_a_reader_that_holds_the_end_finishes_the_journal(book: Book) -> None:
    book.checkpoint(7)
    grant = book.resume(7, 2, left="f-a", heads=())
    assert grant.finished
    assert grant.epoch == 2
    assert book.resume(7, epoch=2) == grant
    assert book.checkpoint(7, 2).refusal is CheckpointRefusal.STALE_EPOCH


def test_a_stop_string_ends_a_choice_once_its_ids_are_there(book: Book) -> None:
    book.checkpoint(7)
    book.keep(book.ledger.cancel("g", 0, CancelReason.STOP, 2, 0.0))
    assert not book.resume(7, epoch=0).finished
    book.checkpoint(7, 8, 9)
    grant = book.resume(7)
    assert grant.finished
    assert grant.base[0].finish_reason is FinishReason.STOP
    assert book.ledger.cancel("g", 0, CancelReason.STOP, 1, 0.0).records == ()
    assert book.ledger.cancel("x", 0, CancelReason.STOP, 1, 0.0).records == ()
    with pytest.raises(InvalidArgument):
        book.ledger.cancel("g", 5, CancelReason.STOP, 1, 0.0)


def test_a_stop_without_a_length_ends_what_there_is(book: Book) -> None:
    book.checkpoint(7)
    book.keep(book.ledger.cancel("g", None, CancelReason.STOP, None, 0.0))
    assert book.resume(7).finished


def test_a_cancelled_choice_is_finished_as_cancelled(book: Book) -> None:
    book.checkpoint(7)
    outcome = book.ledger.cancel("g", 0, CancelReason.CLIENT, None, 0.0)
    assert outcome.fsync
    book.keep(outcome)
    assert book.resume(7).base[0].finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("tenant", ["other", ""])
def test_a_cancel_on_anothers_behalf_finds_nothing_and_ends_nothing(
    book: Book, tenant: str
) -> None:
    owned = replace(REQUEST, tenant="acme")
    book.checkpoint(7, request=owned)
    with pytest.raises(NotFound) as refused:
        book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0, tenant)
    with pytest.raises(NotFound) as absent:
        book.ledger.view("nothing", (), 0.0)
    assert refused.value.message == absent.value.message
    assert book.checkpoint(8, start=1, request=None).refusal is None
    book.keep(book.ledger.cancel("g", 0, CancelReason.STOP, 1, 0.0))
    book.keep(book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0, "acme"))
    assert book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0, "acme").records == ()
    with pytest.raises(NotFound):
        book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0, tenant)


@pytest.mark.parametrize("known", [True, False])
def test_a_cancel_is_for_good(book: Book, known: bool) -> None:
    if known:
        book.checkpoint(7)
    book.keep(book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0))
    assert book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0).records == ()
    book.restart()
    assert book.checkpoint(7, 8).refusal is CheckpointRefusal.ENDED
    with pytest.raises(Cancelled):
        book.resume(7)
    assert book.ledger.population(()).open == ()


@pytest.mark.parametrize("choice", [0, None])
@pytest.mark.parametrize("reason", CancelReason)
def test_behind_a_cancel_nothing_ends_again(
    book: Book, choice: int | None, reason: CancelReason
) -> None:
    book.checkpoint(7, 8, now_s=1.0)
    book.keep(book.ledger.cancel("g", None, CancelReason.CLIENT, None, 2.0))
    outcome = book.ledger.cancel("g", choice, reason, 2, 3.0)
    assert (outcome.records, outcome.events) == ((), ())
    view = book.ledger.view("g", (), 3.0).reply
    assert view.state is GenerationState.CANCELLED
    assert view.spans[0].finish_reason is None


def test_a_view_shows_what_there_is(book: Book) -> None:
    with pytest.raises(NotFound):
        book.ledger.view("g", (A,), 0.0)
    book.checkpoint(7)
    view = book.ledger.view("g", (A, B), 0.0).reply
    assert (view.epoch, view.head, view.state) == (1, A.route, GenerationState.OPEN)
    assert book.ledger.view("g", (B,), 0.0).reply.head is None
    assert book.ledger.head_of("g") == "i-a"
    assert book.ledger.head_of("x") is None
    book.checkpoint(7, 2)
    assert book.ledger.view("g", (A,), 0.0).reply.state is GenerationState.FINISHED


def test_what_has_ended_is_not_cancelled(book: Book) -> None:
    book.checkpoint(7)
    assert book.ledger.cancel("g", 0, CancelReason.STOP, 3, 0.0).reply, "its head is told"
    book.checkpoint(8, 2, start=1, request=None)
    outcome = book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0)
    assert (outcome.reply, outcome.records, outcome.events) == (False, (), ())
    assert book.ledger.view("g", (A,), 0.0).reply.state is GenerationState.FINISHED
    assert book.resume(7, 8, 2).finished, "who reads it has the rest"


def test_what_was_kept_long_enough_is_forgotten() -> None:
    book = Book(retention_s=10.0, parked_retention_s=20.0)
    book.checkpoint(7)
    book.resume(left="f-a", heads=())
    assert book.ledger.tick(19.0).records == ()
    book.checkpoint(8, start=1, now_s=19.0)
    assert book.ledger.tick(30.0).records == ()
    book.keep(book.ledger.tick(39.0))
    assert book.ledger.population(()).open == ()
    complaints = book.ledger._migration._complaints
    assert (complaints._made, complaints._left) == ({}, {})
    book.keep(book.ledger.cancel("x", None, CancelReason.CLIENT, None, 40.0))
    assert len(book.ledger.tick(50.0).records) == 1
    book.restart()
    assert book.ledger.population(()).open == ()


def test_every_prefix_of_the_records_is_a_state_the_ledger_was_in(book: Book) -> None:
    book.checkpoint(7, 8)
    book.checkpoint(9, start=2, sealed=True)
    book.resume(7, 8, 9, left="f-a")
    book.checkpoint(5, start=3, epoch=2, incarnation="i-b", formation_id="f-b")
    book.keep(book.ledger.cancel("g", 0, CancelReason.STOP, 9, 0.0))
    book.keep(book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0))
    assert isinstance(book.records[-1], Ended)
    lengths = []
    for count in range(len(book.records)):
        ledger = Ledger.recover(book.settings, book.records[:count], 0.0)
        lengths.append(sum(line.journaled_tokens for line in ledger.population(()).open))
    assert lengths == sorted(lengths)
    assert lengths[-1] == 4


def test_a_restarted_ledger_gives_the_same_answer(book: Book) -> None:
    book.checkpoint(7)
    grant = book.resume(7, 8, left="f-a")
    book.restart()
    assert book.resume(7, 8) == grant
    assert book.checkpoint(7, 8).refusal is CheckpointRefusal.STALE_EPOCH
