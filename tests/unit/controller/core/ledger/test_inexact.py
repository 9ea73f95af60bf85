"""A generation whose blocks may be rounded: from where on its ids are nobody else's, and what is
compared of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import Diverged
from services.common.exchange import CheckpointRefusal, ResumeQuestion
from services.common.generation import TokenSpan
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.ledger.population import OpenGeneration
from services.controller.core.ledger.records import Granted, IdsAppended, Inexact
from services.controller.core.strategy import STRATEGIES
from tests.unit.controller.core.ledger.book import REQUEST, A, B, Book, head_of, ids_of

ROUNDED = replace(REQUEST, sampling=replace(REQUEST.sampling, kv_int8=True))
C = head_of("c")
AT_B = {"epoch": 2, "incarnation": "i-b", "formation_id": "f-b", "request": ROUNDED}


@pytest.fixture
def asking(book: Book) -> Book:
    """Three ids are journaled; it goes on at its second head."""
    book.checkpoint(5, 6, 7, request=ROUNDED)
    assert ids_of(resumed(book, 5, 6, 7, left="f-a")) == (5, 6, 7)
    return book


def resumed(
    book: Book, *ids: int, epoch: int = 1, left: str = "", request=ROUNDED, heads=(A, B, C)
):
    question = ResumeQuestion("g", epoch, request, (TokenSpan(0, 0, ids),) if ids else (), left)
    return book.keep(book.ledger.resume(question, heads, 5.0))


def declared(book: Book) -> list[tuple[int, ...]]:
    return [record.lengths for record in book.records if isinstance(record, Inexact)]


def open_one(book: Book) -> OpenGeneration:
    (found,) = book.ledger.population((A, B)).open
    return found


def test_what_a_head_says_stands_before_its_ids_and_once(asking: Book) -> None:
    asking.checkpoint(8, start=3, inexact=True, **AT_B)
    asking.checkpoint(9, start=4, inexact=True, **AT_B)
    kinds = [type(record) for record in asking.records[-3:]]
    assert kinds == [Inexact, IdsAppended, IdsAppended]
    assert declared(asking) == [(3,)]
    assert open_one(asking).inexact_from == (3,)


def test_an_exact_move_is_declared_nothing(asking: Book) -> None:
    asking.checkpoint(8, start=3, **AT_B)
    grant = resumed(asking, 5, 6, 7, 8, epoch=2, left="f-b")
    assert (grant.epoch, ids_of(grant), declared(asking)) == (3, (5, 6, 7, 8), [])
    assert open_one(asking).inexact_from == ()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_ids_that_the_reader_alone_has_of_a_later_epoch_count_as_inexact(
    asking: Book, told: bool, restarts: bool
) -> None:
    """Their head may have gone on from rounded blocks, and nobody heard."""
    if told:
        asking.checkpoint(8, start=3, **AT_B)
    if restarts:
        asking.restart()
    grant = resumed(asking, 5, 6, 7, 8, 9, epoch=2, left="f-b")
    assert ids_of(grant) == (5, 6, 7, 8, 9)
    assert declared(asking) == [(3,)]
    doubt, granted = asking.records[-2:]
    assert isinstance(doubt, Inexact)
    assert isinstance(granted, Granted), "what is doubted is there before what goes on from it"


def test_an_epoch_of_which_nothing_was_heard_counts_as_inexact(asking: Book) -> None:
    """Blocks that it computed from rounded ones may be where it goes on."""
    resumed(asking, 5, 6, 7, epoch=2, left="f-b")
    assert declared(asking) == [(3,)]


def test_a_sealed_epoch_has_said_all(asking: Book) -> None:
    asking.checkpoint(sealed=True, **AT_B)
    resumed(asking, 5, 6, 7, epoch=2)
    assert declared(asking) == []


def test_the_first_epoch_and_what_does_not_ask_are_never_in_doubt(book: Book) -> None:
    book.checkpoint(5, request=ROUNDED)
    resumed(book, 5, 6, left="f-a")
    other = Book()
    other.checkpoint(5)
    resumed(other, 5, left="f-a", request=REQUEST)
    resumed(other, 5, 6, 7, epoch=2, left="f-b", request=REQUEST)
    assert declared(book) == declared(other) == []


def test_the_position_outlives_the_controller(asking: Book) -> None:
    asking.checkpoint(8, start=3, inexact=True, **AT_B)
    asking.restart()
    assert open_one(asking).inexact_from == (3,)
    asking.checkpoint(9, start=4, inexact=True, **AT_B)
    assert declared(asking) == [(3,)]


def test_a_generation_that_the_journal_lost_is_doubted_behind_its_grant(book: Book) -> None:
    grant = resumed(book, 5, 6, epoch=2, left="f-b")
    assert (grant.epoch, ids_of(grant)) == (3, (5, 6))
    assert [type(record) for record in book.records] == [Granted, Inexact]
    assert open_one(book).inexact_from == (0,)


@pytest.mark.parametrize("name", [n for n, one in STRATEGIES.items() if not one.migration])
def test_where_heads_begin_at_the_prompt_it_goes_on_from_all_its_ids(name: str) -> None:
    """What a head computes from rounded blocks is not what is held: the one would refuse the
    other."""
    for request, base in ((ROUNDED, (5, 6, 7)), (REQUEST, ())):
        book = Book()
        book.settings = LedgerSettings(strategy=STRATEGIES[name])
        book.ledger = Ledger(book.settings)
        book.checkpoint(5, 6, 7, request=request)
        assert ids_of(resumed(book, 5, 6, 7, left="f-a", request=request)) == base
        at_b = {**AT_B, "request": request}
        said = book.checkpoint(9, start=len(base), **at_b)
        expected = None if base else CheckpointRefusal.DIVERGED
        assert said.refusal is expected  # type: ignore[attr-defined]


def test_what_a_reader_was_told_is_held_against_the_journal_all_the_same(asking: Book) -> None:
    asking.checkpoint(8, start=3, inexact=True, **AT_B)
    with pytest.raises(Diverged):
        resumed(asking, 5, 6, 7, 9, epoch=2, left="f-b")
    said = asking.checkpoint(9, start=3, inexact=True, **AT_B)
    assert said.refusal is CheckpointRefusal.DIVERGED  # type: ignore[attr-defined]
