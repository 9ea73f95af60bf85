from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

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
    Checkpoint,
    CheckpointRefusal,
    GenerationState,
    Grant,
    LeaveReason,
    ResumeQuestion,
    Route,
)
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.common.phases import PipelinePhase
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, Outcome, RunsAt, ServingHead
from services.controller.core.ledger.records import (
    Ended,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
    Sealed,
)

MODEL = ModelRef("m", "d")
REQUEST = GenerationRequest("g", MODEL, (1, 2), Sampling(max_tokens=50, eos_token_ids=(2,)))


def head_of(
    name: str,
    *,
    hands_over: bool = False,
    speed: float = 1.0,
    model: ModelRef = MODEL,
    numerics: str = "",
    positions: int = 100,
    stalled: bool = False,
    phase: PipelinePhase = PipelinePhase.BOTH,
    onward: Mapping[str, float] = MappingProxyType({}),
) -> ServingHead:
    route = Route(f"p-{name}", f"f-{name}", f"i-{name}", f"{name}:1", speed, model, positions)
    return ServingHead(
        route,
        not hands_over and not stalled,
        numerics,
        hands_over,
        stalled,
        phase=phase,
        onward=onward,
    )


A, B = head_of("a"), head_of("b")


class Book:
    """A ledger and everything it would have stored."""

    def __init__(self, **settings: float) -> None:
        self.settings = LedgerSettings(**settings)  # type: ignore[arg-type]
        self.ledger = Ledger(self.settings)
        self.records: list[Record] = []

    def keep(self, outcome: Outcome | None) -> object:
        assert outcome is not None
        self.records += outcome.records
        return outcome.reply

    def checkpoint(self, *ids: int, start: int = 0, now_s: float = 0.0, **changes: object):
        spans = (TokenSpan(0, start, ids),) if ids else ()
        whole = Checkpoint("g", 1, "i-a", "f-a", REQUEST, spans)
        changed = replace(whole, **changes)  # type: ignore[arg-type]
        return self.keep(self.ledger.checkpoint(changed, RunsAt("p-a", MODEL), now_s))

    def resume(
        self,
        *ids: int,
        epoch: int = 1,
        left: str = "",
        heads=(A, B),
        now_s: float = 0.0,
        reason: LeaveReason = LeaveReason.REFUSED,
    ):
        spans = (TokenSpan(0, 0, ids),) if ids else ()
        question = ResumeQuestion("g", epoch, REQUEST, spans, left, reason if left else None)
        outcome = self.ledger.resume(question, heads, now_s)
        return None if outcome is None else self.keep(outcome)

    def restart(self) -> None:
        self.ledger = Ledger.recover(self.settings, self.records, 0.0)


@pytest.fixture
def book() -> Book:
    return Book()


def ids_of(grant: Grant) -> tuple[int, ...]:
    return grant.base[0].ids if grant.base else ()


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


def test_the_same_question_gets_the_same_answer_while_that_head_lives(book: Book) -> None:
    book.checkpoint(7)
    first = book.resume(7, left="f-a")
    book.checkpoint(8, start=1, epoch=2, incarnation="i-b", formation_id="f-b")
    assert book.resume(7, left="f-a") == first
    assert book.resume(7, left="f-a", heads=(A,)) is None
    assert book.resume(7, left="f-a", heads=(A,), now_s=2.0).epoch == 3


def test_a_reader_with_other_ids_is_told_and_nothing_changes(book: Book) -> None:
    book.checkpoint(7)
    with pytest.raises(Diverged):
        book.resume(6)
    assert len(book.records) == 2


def test_a_head_that_a_reader_left_is_granted_again_only_after_a_while(book: Book) -> None:
    book.checkpoint(7)
    assert book.resume(7, left="f-a", heads=(A,)) is None
    assert book.resume(7, left="f-a", heads=(A,), now_s=0.9) is None
    assert book.resume(7, left="f-a", heads=(A,), now_s=1.0).head == A.route


def silent(book: Book, *ids: int, heads: tuple[ServingHead, ...], now_s: float = 0.0):
    return book.resume(*ids, left="f-a", reason=LeaveReason.SILENT, heads=heads, now_s=now_s)


def test_who_hears_nothing_from_a_head_that_serves_is_sent_back_and_nothing_is_written(
    book: Book,
) -> None:
    book.checkpoint(7, 8)
    written = len(book.records)
    for now_s in (0.0, 0.1, 30.0):
        grant = silent(book, 7, heads=(A, B), now_s=now_s)
        assert (grant.epoch, grant.head, grant.base) == (1, A.route, ())
    assert len(book.records) == written
    assert book.checkpoint(9, start=2).refusal is None
    other = book.resume(7, 8, left="f-b", heads=(A, B), epoch=0, now_s=30.1)
    assert other.head == A.route, "a question that was refused is no complaint"


def test_a_head_that_the_journal_has_yet_to_hear_from_is_gone_back_to(book: Book) -> None:
    grant = silent(book, heads=(A, B))
    assert (grant.epoch, grant.head, grant.base) == (1, A.route, ())
    assert book.records == []


def test_a_head_that_stalls_is_left_for_another_one(book: Book) -> None:
    book.checkpoint(7)
    grant = silent(book, 7, heads=(head_of("a", stalled=True), B))
    assert (grant.epoch, grant.head) == (2, B.route)


def test_a_head_that_stalls_and_has_no_other_beside_it_is_waited_for(book: Book) -> None:
    book.checkpoint(7)
    for now_s in (0.0, 5.0):
        assert silent(book, 7, heads=(head_of("a", stalled=True),), now_s=now_s) is None
    grant = silent(book, 7, heads=(A,), now_s=6.0)
    assert (grant.epoch, grant.head) == (1, A.route)


def test_a_head_that_lives_and_is_not_reached_is_left_only_for_another_one(book: Book) -> None:
    book.checkpoint(7)
    reason = LeaveReason.UNREACHABLE
    for now_s in (0.0, 5.0):
        grant = book.resume(7, left="f-a", reason=reason, heads=(A,), now_s=now_s)
        assert (grant.epoch, grant.head) == (1, A.route)
    assert book.resume(7, left="f-a", reason=reason, heads=(A, B), now_s=6.0).head == B.route


def test_who_has_not_reached_a_head_for_a_moment_is_sent_back_to_it(book: Book) -> None:
    book.checkpoint(7)
    reason, unheard_s = LeaveReason.UNREACHABLE, book.ledger.settings.unheard_s

    def ask(now_s: float, unheard_s: float, *heads: ServingHead) -> Grant | None:
        question = ResumeQuestion("g", 1, REQUEST, (), "f-a", reason, unheard_s)
        outcome = book.ledger.resume(question, heads, now_s)
        return None if outcome is None else outcome.reply

    assert ask(0.0, 0.0, A, B) is None, "its death may be on its way"
    assert ask(0.9, 0.0, A, B) is None
    grant = ask(1.0, 0.0, A, B)
    assert grant is not None
    assert (grant.epoch, grant.head) == (1, A.route)
    assert ask(1.2, 1.2, A, B) is None
    dead = ask(1.3, 1.2, head_of("a", stalled=True), B)
    assert dead is not None
    assert (dead.epoch, dead.head) == (2, B.route)
    question = ResumeQuestion("g", 2, REQUEST, (), "f-b", reason, unheard_s)
    outcome = book.ledger.resume(question, (A, B), 9.0)
    assert outcome is not None
    assert (outcome.reply.epoch, outcome.reply.head) == (3, A.route)


def test_no_head_means_waiting(book: Book) -> None:
    assert book.resume(heads=()) is None
    assert book.resume(heads=(head_of("c", model=ModelRef("m", "x")),)) is None
    assert book.resume(heads=(head_of("c", hands_over=True),)) is None


def test_a_head_that_hands_over_is_waited_for_until_it_has_sealed(book: Book) -> None:
    leaving = head_of("a", hands_over=True)
    book.checkpoint(7)
    assert book.resume(7, epoch=0, heads=(leaving, B)) is None
    assert book.resume(7, left="f-a", heads=(leaving, B)) is None
    book.checkpoint(7, 8, sealed=True)
    assert ids_of(book.resume(7, left="f-a", heads=(leaving, B))) == (7, 8)


def test_a_reader_that_was_told_moved_does_not_wait(book: Book) -> None:
    book.checkpoint(7)
    leaving = head_of("a", hands_over=True)
    assert book.resume(7, 8, heads=(leaving, B)).head == B.route


def test_who_was_moved_waits_for_what_follows_and_who_left_does_not(book: Book) -> None:
    leaving = replace(head_of("a", hands_over=True), switching=True)
    other = replace(B, switching=True)
    book.checkpoint(7)
    assert book.resume(7, heads=(leaving, other)) is None
    book.checkpoint(7, 8, sealed=True)
    assert book.resume(7, 8, heads=(other,)) is None
    assert book.resume(7, left="f-a", heads=(other,)).head == B.route


def test_a_parked_generation_returns_to_the_head_it_had(book: Book) -> None:
    book.checkpoint(7, sealed=True)
    assert book.resume(7, heads=(A,)).head == A.route


def test_a_generation_stays_in_its_arithmetic_while_there_is_a_head_of_it(book: Book) -> None:
    exact = replace(REQUEST, numerics_class="exact")
    book.checkpoint(7, request=exact, sealed=True)
    other, same = head_of("b", speed=9.0, numerics="inexact"), head_of("c", numerics="exact")
    question = ResumeQuestion("g", 1, exact, ())
    outcome = book.ledger.resume(question, (other, same), 0.0)
    assert outcome is not None
    assert outcome.reply.head == same.route
    assert "numerics" not in outcome.events[0].attributes


def test_a_grant_that_leaves_its_arithmetic_says_so(book: Book) -> None:
    exact = replace(REQUEST, numerics_class="exact")
    book.checkpoint(7, request=exact, sealed=True)
    other = head_of("b", numerics="inexact")
    outcome = book.ledger.resume(ResumeQuestion("g", 1, exact, ()), (other,), 0.0)
    assert outcome is not None
    assert outcome.reply.head == other.route
    assert outcome.events[0].attributes["numerics"] == "exact to inexact"


EXACT = replace(REQUEST, numerics_class="exact")
EXACT_COMES = {(MODEL, "exact")}


def _moved(book: Book, heads, coming=(), now_s: float = 0.0, epoch: int = 1):
    question = ResumeQuestion("g", epoch, EXACT, ())
    outcome = book.ledger.resume(question, heads, now_s, coming)
    return None if outcome is None else book.keep(outcome)


def test_a_generation_waits_for_its_arithmetic_while_a_head_of_it_comes(book: Book) -> None:
    book.checkpoint(7, request=EXACT, sealed=True)
    other, own = head_of("b", numerics="inexact"), head_of("c", numerics="exact")
    assert _moved(book, (other,), EXACT_COMES) is None
    assert _moved(book, (other,), EXACT_COMES, now_s=19.9) is None
    assert _moved(book, (other, own), (), now_s=19.9).head == own.route


def test_it_waits_no_longer_than_it_may_nor_for_another_model(book: Book) -> None:
    book.checkpoint(7, request=EXACT, sealed=True)
    other = head_of("b", numerics="inexact")
    assert _moved(book, (other,), EXACT_COMES, now_s=5.0) is None
    assert _moved(book, (other,), EXACT_COMES, now_s=25.0).head == other.route
    book.checkpoint(8, start=1, request=EXACT, epoch=2, incarnation="i-b", sealed=True)
    assert _moved(book, (A,), {(ModelRef("m", "x"), "inexact")}, epoch=2).head == A.route


def test_arithmetic_that_does_not_come_is_not_waited_for(book: Book) -> None:
    book.checkpoint(7, request=EXACT, sealed=True)
    other = head_of("b", numerics="inexact")
    assert _moved(book, (other,)).head == other.route


@pytest.mark.parametrize("stalled", [False, True])
def test_a_head_that_is_left_but_not_lost_yet_keeps_its_readers_in_its_arithmetic(
    book: Book, stalled: bool
) -> None:
    book.checkpoint(7, request=EXACT)
    left = replace(A, numerics_class="exact", stalled=stalled)
    other, own = head_of("b", numerics="inexact"), head_of("c", numerics="exact")
    formation_id = left.route.formation_id
    question = ResumeQuestion(
        "g", 1, EXACT, (), formation_id, reason=LeaveReason.UNREACHABLE, unheard_s=9.0
    )
    asked = book.ledger.resume(question, (left, other), 0.0)
    if stalled:
        assert asked is None
    else:
        assert asked is not None
        assert (asked.reply.head, asked.reply.epoch) == (left.route, 1)
    assert book.ledger.resume(question, (other,), 0.3, EXACT_COMES) is None
    outcome = book.ledger.resume(question, (other, own), 3.0)
    assert outcome is not None
    assert outcome.reply.head == own.route


def test_the_classes_it_had_are_told_and_survive_a_restart(book: Book) -> None:
    book.checkpoint(7, request=EXACT, sealed=True)
    assert book.ledger.view("g", (), 0.0).reply.classes == ("exact",)
    _moved(book, (head_of("b", numerics="inexact"),))
    assert book.ledger.view("g", (), 0.0).reply.classes == ("exact", "inexact")
    book.restart()
    assert book.ledger.view("g", (), 0.0).reply.classes == ("exact", "inexact")


def test_what_moved_once_stays_in_the_arithmetic_it_has_now(book: Book) -> None:
    book.checkpoint(7, request=EXACT, sealed=True)
    _moved(book, (head_of("b", numerics="inexact"),))
    heads = head_of("c", speed=9.0, numerics="exact"), head_of("d", numerics="inexact")
    assert _moved(book, heads, epoch=2).head == heads[1].route


def test_a_generation_waits_for_a_pipeline_that_it_cannot_outgrow() -> None:
    book = Book()
    book.checkpoint(7)
    small, large = head_of("s", speed=9.0, positions=51), head_of("l", positions=52)
    assert book.resume(7, heads=(small,)) is None
    grant = book.resume(7, heads=(small, large))
    assert isinstance(grant, Grant)
    assert grant.head == large.route


def test_shares_follow_throughput_and_load(book: Book) -> None:
    fast, slow = head_of("a", speed=3.0), head_of("b", speed=1.0)
    heads = []
    for number in range(8):
        request = replace(REQUEST, generation_id=f"g{number}")
        outcome = book.ledger.resume(ResumeQuestion(f"g{number}", 0, request, ()), (fast, slow), 0)
        assert outcome is not None
        heads.append(outcome.reply.head)
    assert heads.count(fast.route) == 6


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
    book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0)
    assert book.ledger.view("g", (A,), 0.0).reply.state is GenerationState.CANCELLED


def test_what_was_kept_long_enough_is_forgotten() -> None:
    book = Book(retention_s=10.0, parked_retention_s=20.0)
    book.checkpoint(7)
    book.resume(left="f-a", heads=())
    assert book.ledger.tick(19.0).records == ()
    book.checkpoint(8, start=1, now_s=19.0)
    assert book.ledger.tick(30.0).records == ()
    book.keep(book.ledger.tick(39.0))
    assert book.ledger.population(()).open == ()
    complaints = book.ledger._complaints
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


def test_a_generation_is_bound_and_granted_at_heads_of_its_model_alone(book: Book) -> None:
    other, newer = ModelRef("other", "d"), replace(MODEL, digest="d2")
    checkpoint = Checkpoint("g", 1, "i-a", "f-a", REQUEST, ())
    refusal = book.ledger.checkpoint(checkpoint, RunsAt("p-a", other), 0.0).reply.refusal
    assert refusal is CheckpointRefusal.UNKNOWN_FORMATION
    assert book.ledger.model_of("g") is None
    book.checkpoint(7)
    wrong = (head_of("a", model=other), head_of("b", model=other), head_of("c", model=newer))
    assert book.resume(7, left="f-a", reason=LeaveReason.SILENT, heads=wrong) is None
    assert book.resume(7, left="f-a", heads=(*wrong, B)).head == B.route
    assert book.ledger.model_of("g") == MODEL


PREFILL = head_of("a", phase=PipelinePhase.PREFILL, speed=9.0)
DECODE = head_of("b", phase=PipelinePhase.DECODE)


def test_what_has_its_first_token_goes_on_where_is_decoded_and_the_rest_where_is_prefilled(
    book: Book,
) -> None:
    heads = (PREFILL, DECODE)
    book.checkpoint()
    assert book.resume(heads=heads).head == PREFILL.route
    book.checkpoint(5, epoch=2, sealed=True)
    assert book.resume(5, epoch=2, heads=heads).head == DECODE.route
    assert book.resume(5, epoch=3, left="f-b", heads=(PREFILL,)).head == PREFILL.route


def test_what_was_given_is_no_first_token(book: Book) -> None:
    """An echoed prompt is given id by id, and is read as a prompt is."""
    request = replace(REQUEST, sampling=replace(REQUEST.sampling, given_ids=(7, 8)))
    book.checkpoint(7, 8, request=request, sealed=True)
    question = ResumeQuestion("g", 1, request, (TokenSpan(0, 0, (7, 8)),))
    granted = book.keep(book.ledger.resume(question, (PREFILL, DECODE), 0.0))
    assert granted == Grant(2, PREFILL.route, question.held)


def handed_on(book: Book, name: str, heads: tuple[ServingHead, ...], *, seal: bool = True) -> str:
    """A generation that pipeline p-a begins and hands on; the pipeline that goes on with it."""
    request, spans = replace(REQUEST, generation_id=name), (TokenSpan(0, 0, (5,)),)
    first = Checkpoint(name, 1, "i-a", "f-a", request, spans, sealed=seal)
    book.keep(book.ledger.checkpoint(first, RunsAt("p-a", MODEL), 0.0))
    question = ResumeQuestion(name, 1, request, spans, handed_on=True)
    outcome = book.ledger.resume(question, heads, 0.0)
    assert outcome is not None
    (event,) = outcome.events
    assert (event.attributes["planned"], event.attributes["handed_on"]) == ("true", "true")
    book.keep(outcome)
    head = outcome.reply.head
    assert head is not None
    return head.pipeline_id


def test_generations_are_handed_on_in_the_plans_proportion_of_those_that_run(book: Book) -> None:
    first = replace(PREFILL, onward={"p-b": 1.0, "p-c": 3.0})
    heads = (first, DECODE, head_of("c", phase=PipelinePhase.DECODE))
    went = [handed_on(book, f"g{number}", heads) for number in range(40)]
    assert Counter(went) == {"p-b": 10, "p-c": 30}
    for number, pipeline in enumerate(went[:20]):  # half of them end; p-c alone is as it was
        if pipeline == "p-b":
            book.ledger.cancel(f"g{number}", None, CancelReason.CLIENT, None, 0.0)
    more = [handed_on(book, f"h{number}", heads) for number in range(5)]
    assert Counter(more) == {"p-b": 5}, "those have fewer than their share by now"


def test_without_proportions_the_least_loaded_goes_on(book: Book) -> None:
    heads = (PREFILL, DECODE, head_of("c", phase=PipelinePhase.DECODE, speed=4.0))
    went = Counter(handed_on(book, f"g{number}", heads) for number in range(20))
    assert went == {"p-b": 4, "p-c": 16}


def test_a_reader_that_is_ahead_of_its_heads_seal_is_handed_on_all_the_same(book: Book) -> None:
    assert handed_on(book, "g", (PREFILL, DECODE), seal=False) == "p-b"


def test_what_is_handed_on_waits_for_nobody_who_follows_a_drain(book: Book) -> None:
    heads = tuple(replace(head, switching=True) for head in (PREFILL, DECODE))
    assert handed_on(book, "g", heads) == "p-b"


def test_a_generation_goes_on_at_the_head_that_was_promised(book: Book) -> None:
    """Whatever the loads are by then."""
    book.checkpoint(7)
    c = head_of("c", speed=2.0)
    assert book.ledger.promise("f-a", (A, B, c)) == {"g": c}
    book.checkpoint(8, start=1, sealed=True)
    slow = head_of("c", speed=0.1)
    assert book.resume(7, 8, heads=(B, slow)).head == slow.route


def test_a_promise_binds_nobody_when_that_head_takes_nothing(book: Book) -> None:
    book.checkpoint(7)
    assert book.ledger.promise("f-a", (A, B)) == {"g": B}
    book.checkpoint(8, start=1, sealed=True)
    c = head_of("c")
    assert book.resume(7, 8, heads=(head_of("b", hands_over=True), c)).head == c.route


def test_nothing_is_promised_to_other_arithmetic_or_where_nobody_serves(book: Book) -> None:
    book.checkpoint(7)
    assert book.ledger.promise("f-a", (A,)) == {}
    assert book.ledger.promise("f-a", (A, head_of("b", numerics="other"))) == {}
    assert book.ledger.promise("f-b", (A, B)) == {}


def begun(book: Book, name: str) -> str:
    """It is about to be read by pipeline p-a."""
    first = Checkpoint(name, 1, "i-a", "f-a", replace(REQUEST, generation_id=name), ())
    book.keep(book.ledger.checkpoint(first, RunsAt("p-a", MODEL), 0.0))
    return name


HANDS_ON = replace(
    PREFILL, route=replace(PREFILL.route, hands_on=True), onward={"p-b": 1.0, "p-c": 3.0}
)


def test_where_what_begins_will_go_on_is_promised_in_the_plans_proportion(book: Book) -> None:
    """Those that are still read count as if they were there; the promise is kept."""
    heads = (HANDS_ON, DECODE, head_of("c", phase=PipelinePhase.DECODE))
    promised = {}
    for name in [begun(book, f"g{number}") for number in range(8)]:
        head = book.ledger.promise_onward(name, heads)
        assert head is not None
        promised[name] = head.route.pipeline_id
    assert Counter(promised.values()) == {"p-b": 2, "p-c": 6}
    assert {name: handed_on(book, name, heads) for name in reversed(promised)} == promised


def test_nothing_is_promised_to_what_stays_or_is_of_other_arithmetic_or_is_gone(
    book: Book,
) -> None:
    begun(book, "g")
    assert book.ledger.promise_onward("h", (HANDS_ON, DECODE)) is None
    assert book.ledger.promise_onward("g", (PREFILL, DECODE)) is None, "it is not handed on"
    assert book.ledger.promise_onward("g", (DECODE,)) is None
    other = head_of("c", phase=PipelinePhase.DECODE, numerics="other")
    assert book.ledger.promise_onward("g", (HANDS_ON, other)) is None
    beside = head_of("d", phase=PipelinePhase.PREFILL)
    assert book.ledger.promise_onward("g", (HANDS_ON, beside)) is None
    book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0)
    assert book.ledger.promise_onward("g", (HANDS_ON, DECODE)) is None
