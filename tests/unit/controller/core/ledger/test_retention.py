"""What is stored leaves memory behind its end, and can be deleted wherever it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import Cancelled, NotFound
from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    GenerationState,
    ResumeQuestion,
)
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    ResponseTerms,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.ledger.records import Ended, Forgotten, Kept, Record
from services.controller.core.ledger.retention import STORED_AT_ONCE

SETTINGS = LedgerSettings(
    retention_s=600.0, kept_after_s=120.0, parked_retention_s=3600.0, stored_retention_s=9000.0
)
STORED = ResponseTerms(store=True, background=False, details="{}")
UNREAD = ResponseTerms(store=True, background=True, details="{}")


class Book:
    """A ledger and everything it recorded."""

    def __init__(self, settings: LedgerSettings = SETTINGS) -> None:
        self.settings = settings
        self.ledger = Ledger(settings)
        self.records: list[Record] = []

    def run(
        self, name: str, now_s: float, tokens: int, terms: ResponseTerms | None, **more: bool
    ) -> Checkpoint:
        """A generation of two tokens that has made some of them."""
        sampling = Sampling(max_tokens=2)
        request = GenerationRequest(name, ModelRef("m", "d"), (1,), sampling, response=terms)
        span = TokenSpan(0, 0, (5, 6)[:tokens])
        checkpoint = Checkpoint(name, 1, "i", "f", request, (span,), **more)
        self.records += self.ledger.checkpoint(checkpoint, None, now_s).records
        return checkpoint

    def tick(self, now_s: float, at_most: int | None = None) -> list[Record]:
        records = self.ledger.tick(now_s, at_most).records
        self.records += records
        return list(records)

    def names(self, now_s: float) -> tuple[str, ...]:
        return self.ledger.claim_background((), now_s, 99).reply


def test_what_is_stored_leaves_memory_as_a_whole_soon_behind_its_end() -> None:
    book = Book()
    book.run("stored", 0.0, 2, STORED)
    book.run("other", 0.0, 2, None)
    book.run("unstored", 0.0, 2, replace(STORED, store=False))
    assert book.tick(119.0) == []
    (kept,) = book.tick(120.0)
    assert isinstance(kept, Kept)
    assert (kept.generation_id, kept.view.state) == ("stored", GenerationState.FINISHED)
    assert kept.view.spans[0].ids == (5, 6)
    with pytest.raises(NotFound):
        book.ledger.view("stored", (), 120.0)
    assert book.tick(600.0) == [Forgotten("other"), Forgotten("unstored")]


def test_what_was_cancelled_is_stored_as_far_as_it_came() -> None:
    book = Book()
    book.run("g", 0.0, 1, UNREAD)
    book.ledger.cancel("g", None, CancelReason.CLIENT, None, 0.0)
    (kept,) = book.tick(120.0)
    assert isinstance(kept, Kept)
    assert (kept.view.state, kept.view.spans[0].ids) == (GenerationState.CANCELLED, (5,))


def test_what_nobody_came_back_for_is_stored_as_cancelled() -> None:
    book = Book()
    book.run("g", 0.0, 1, STORED, unread=True, sealed=True)
    assert book.tick(3599.0) == []
    (kept,) = book.tick(3600.0)
    assert isinstance(kept, Kept)
    assert kept.view.state is GenerationState.CANCELLED


def test_what_runs_unread_is_parked_for_as_long_as_what_is_stored() -> None:
    book = Book(replace(SETTINGS, max_parked=0))
    book.run("g", 0.0, 1, UNREAD, unread=True, sealed=True)
    assert book.tick(8999.0) == []
    assert [type(record) for record in book.tick(9000.0)] == [Kept]
    assert book.names(9000.0) == ()


def test_details_do_not_fill_memory_and_not_all_leave_at_once() -> None:
    book = Book(replace(SETTINGS, max_ended_bytes=10))
    for number in range(STORED_AT_ONCE + 9):
        book.run(f"g{number}", 0.0, 2, STORED)
    left = [record.generation_id for record in book.tick(1.0)]
    assert left == [f"g{n}" for n in range(STORED_AT_ONCE)]
    left = [record.generation_id for record in book.tick(1.0)]
    assert len(left) == 4, "five of two bytes each are no more than ten"
    assert len(book.tick(120.0, at_most=2)) == 2


def test_a_recovered_ledger_stores_the_same_and_offers_what_runs_unread() -> None:
    book = Book()
    book.run("stored", 0.0, 2, STORED)
    book.run("unread", 0.0, 1, UNREAD)
    book.ledger = Ledger.recover(SETTINGS, book.records, 0.0)
    assert book.names(4.9) == ()
    assert book.names(5.0) == ("unread",), "its formation does not serve any more"
    assert [record.generation_id for record in book.tick(120.0)] == ["stored"]


def test_what_ended_is_offered_to_nobody() -> None:
    book = Book()
    for name, tokens in (("finished", 2), ("cancelled", 1), ("deleted", 1)):
        book.run(name, 0.0, tokens, UNREAD, unread=True)
    book.ledger.cancel("cancelled", None, CancelReason.CLIENT, None, 0.0)
    book.ledger.delete("deleted", 0.0)
    assert book.names(99.0) == ()


@pytest.mark.parametrize("tokens", [1, 2])
def test_what_was_deleted_is_gone_and_does_not_come_back(tokens: int) -> None:
    book = Book()
    said = book.run("g", 0.0, tokens, UNREAD)
    outcome = book.ledger.delete("g", 1.0)
    assert outcome.records == (Forgotten("g"), Ended("g", None, CancelReason.CLIENT, None))
    assert outcome.fsync
    for ledger in (book.ledger, Ledger.recover(SETTINGS, outcome.records[1:], 1.0)):
        with pytest.raises(NotFound):
            ledger.view("g", (), 1.0)
        assert ledger.checkpoint(said, None, 1.0).reply.refusal is CheckpointRefusal.ENDED
        with pytest.raises(Cancelled):
            ledger.resume(ResumeQuestion("g", 1, said.request, ()), (), 1.0)
        assert ledger.tick(601.0).records == (Forgotten("g"),)
