from __future__ import annotations

import random

import pytest

from services.common.errors import NotFound
from services.common.exchange import Checkpoint, GenerationState, ResumeQuestion, Route
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.abandoned import Abandoned
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, ServingHead
from services.controller.core.ledger.population import Standing

MODEL = ModelRef("m", "d")
HEAD = ServingHead(Route("p", "f", "i", "a:1", 1.0, MODEL, 100), takes_new=True)


def test_each_of_many_equal_asks_is_claimed_once() -> None:
    abandoned = Abandoned(60.0, 5.0)
    for number in range(3):
        abandoned.left(f"g{number}", "same", float(number))
    abandoned.left("other", "another", 0.0)
    claimed = [abandoned.claim("same", 3.0) for _ in range(4)]
    assert claimed == ["g0", "g1", "g2", None]


def test_a_claim_that_nobody_made_use_of_runs_out() -> None:
    abandoned = Abandoned(60.0, 5.0)
    abandoned.left("g", "d", 0.0)
    assert abandoned.claim("d", 1.0) == "g"
    abandoned.left("g", "d", 2.0)
    assert abandoned.claim("d", 5.9) is None
    assert abandoned.claim("d", 6.0) == "g"


def test_what_is_read_or_gone_or_without_a_digest_is_nobodys_to_claim() -> None:
    abandoned = Abandoned(60.0, 5.0)
    abandoned.left("read", "d", 0.0)
    abandoned.left("nameless", "", 0.0)
    abandoned.remove("read")
    abandoned.remove("read")
    assert abandoned.claim("d", 0.0) is None
    assert abandoned.claim("", 0.0) is None
    assert len(abandoned) == 0


def test_the_window_bounds_what_is_held() -> None:
    abandoned = Abandoned(10.0, 5.0)
    for number in range(1000):
        abandoned.left(f"g{number}", f"d{number % 7}", float(number))
        abandoned.forget(float(number))
    assert len(abandoned) == 10
    assert abandoned.claim("d0", 2000.0) is None
    abandoned.forget(2000.0)
    assert (len(abandoned), abandoned._names) == (0, {})


def test_any_order_of_events_keeps_both_indexes_alike() -> None:
    chance = random.Random(5)
    abandoned = Abandoned(8.0, 2.0)
    for now_s in range(3000):
        name = f"g{chance.randrange(30)}"
        event = chance.randrange(4)
        if event == 0:
            abandoned.remove(name)
        elif event == 1:
            abandoned.forget(float(now_s))
        elif event == 2:
            abandoned.claim(f"d{chance.randrange(4)}", float(now_s))
        else:
            abandoned.left(name, f"d{hash(name) % 4}", float(now_s))
        listed = {name for names in abandoned._names.values() for name in names}
        assert listed == abandoned._left.keys()


class Book:
    def __init__(self) -> None:
        self.ledger = Ledger(LedgerSettings())

    def say(self, name: str, *ids: int, now_s: float = 0.0, epoch: int = 1, **more: bool) -> None:
        request = GenerationRequest(name, MODEL, (1,), Sampling(max_tokens=3), ask_digest="d")
        spans = (TokenSpan(0, 0, ids),) if ids else ()
        checkpoint = Checkpoint(name, epoch, "i", "f", request, spans, **more)
        self.ledger.checkpoint(checkpoint, None, now_s)

    def claim(self, now_s: float = 0.0) -> str | None:
        try:
            return self.ledger.claim("d", (HEAD,), now_s).reply.request.generation_id
        except NotFound:
            return None


@pytest.fixture
def book() -> Book:
    return Book()


def test_what_somebody_reads_is_not_given_to_another(book: Book) -> None:
    book.say("g", 7)
    assert book.claim() is None
    book.say("g", 7, unread=True)
    assert book.claim() == "g"
    book.say("g", 7)
    book.ledger.tick(30.0)
    assert book.claim(30.0) is None


def test_a_reader_that_resumes_takes_it_out_of_reach(book: Book) -> None:
    book.say("g", 7, unread=True, sealed=True)
    book.ledger.resume(ResumeQuestion("g", 1, None, ()), (HEAD,), 1.0)
    assert book.claim(1.0) is None


def test_what_a_head_was_granted_and_never_began_is_unread_in_time(book: Book) -> None:
    book.say("g", 7, unread=True, sealed=True)
    book.ledger.resume(ResumeQuestion("g", 1, None, ()), (HEAD,), 1.0)
    book.ledger.tick(10.9)
    assert book.claim(10.9) is None, "its reader may be on the way"
    book.ledger.tick(11.0)
    (line,) = book.ledger.population((HEAD,)).open
    assert (line.standing, line.unread) == (Standing.PARKED, True)
    assert book.claim(11.0) == "g"
    for now_s in range(12, 200):
        book.ledger.tick(float(now_s))
    assert len(book.ledger._abandoned) == 0


def test_what_its_head_has_begun_stays_its_readers(book: Book) -> None:
    book.say("g", 7, unread=True, sealed=True)
    book.ledger.resume(ResumeQuestion("g", 1, None, ()), (HEAD,), 1.0)
    book.say("g", 7, epoch=2)
    book.ledger.tick(500.0)
    assert book.claim(500.0) is None


def test_a_running_one_comes_with_its_head_and_a_parked_one_without(book: Book) -> None:
    book.say("g", 7, unread=True)
    assert book.ledger.claim("d", (HEAD,), 0.0).reply.head == HEAD.route
    book.say("g", 7, unread=True, sealed=True)
    view = book.ledger.claim("d", (HEAD,), 6.0).reply
    assert (view.head, view.spans[0].ids) == (None, (7,))


def test_one_that_finished_unread_is_given_once(book: Book) -> None:
    book.say("g", 7, 8, 9, unread=True)
    assert book.ledger.claim("d", (HEAD,), 0.0).reply.state is GenerationState.FINISHED
    assert book.claim(50.0) is None


@pytest.mark.parametrize("end", ["cancelled", "forgotten", "too old"])
def test_what_is_gone_is_not_given(book: Book, end: str) -> None:
    book.say("g", 7, unread=True, sealed=True)
    if end == "cancelled":
        book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0)
    book.ledger.tick(1e6 if end == "forgotten" else 60.0)
    assert book.claim(61.0) is None
    assert len(book.ledger._abandoned) == 0
