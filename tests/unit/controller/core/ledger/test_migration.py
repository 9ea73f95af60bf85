from collections import Counter
from dataclasses import replace

import pytest

from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    Grant,
    LeaveReason,
    ResumeQuestion,
)
from services.common.generation import (
    CancelReason,
    ModelRef,
    TokenSpan,
)
from services.common.phases import PipelinePhase
from services.controller.core.ledger.outcomes import RunsAt, ServingHead
from tests.unit.controller.core.ledger.book import MODEL, REQUEST, A, B, Book, head_of, ids_of


def test_the_same_question_gets_the_same_answer_while_that_head_lives(book: Book) -> None:
    book.checkpoint(7)
    first = book.resume(7, left="f-a")
    book.checkpoint(8, start=1, epoch=2, incarnation="i-b", formation_id="f-b")
    assert book.resume(7, left="f-a") == first
    assert book.resume(7, left="f-a", heads=(A,)) is None
    assert book.resume(7, left="f-a", heads=(A,), now_s=2.0).epoch == 3


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
