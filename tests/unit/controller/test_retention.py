from __future__ import annotations

import pytest

from services.common.errors import NotFound
from services.common.exchange import Checkpoint
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.ledger import Ledger, LedgerSettings
from services.controller.core.ledger.records import Forgotten, Record

SETTINGS = LedgerSettings(retention_s=10.0, parked_retention_s=100.0, max_ended=3, max_parked=3)


class _Journal:
    """A ledger and everything it recorded."""

    def __init__(self) -> None:
        self.ledger = Ledger(SETTINGS)
        self.records: list[Record] = []

    def run(self, name: str, now_s: float, tokens: int, **more: bool) -> None:
        """A generation of two tokens that has made some of them."""
        request = GenerationRequest(name, ModelRef("m", "d"), (1,), Sampling(max_tokens=2))
        span = TokenSpan(0, 0, (5, 6)[:tokens])
        checkpoint = Checkpoint(name, 1, "i", "f", request, (span,), **more)
        self.records += self.ledger.checkpoint(checkpoint, None, now_s).records

    def tick(self, now_s: float) -> list[str]:
        records = self.ledger.tick(now_s).records
        self.records += records
        assert all(isinstance(record, Forgotten) for record in records)
        return [record.generation_id for record in records]


def test_only_so_many_ended_generations_are_kept_the_oldest_go() -> None:
    journal = _Journal()
    for number in range(5):
        journal.run(f"g{number}", float(number), tokens=2)
    journal.run("open", 0.0, tokens=1)
    assert journal.tick(5.0) == ["g0", "g1"]
    assert journal.tick(5.0) == []
    with pytest.raises(NotFound):
        journal.ledger.view("g0", (), 5.0)
    assert journal.ledger.view("g2", (), 5.0).reply.spans[0].ids == (5, 6)


def test_an_ended_generation_that_is_read_is_kept_longer() -> None:
    journal = _Journal()
    journal.run("read", 0.0, tokens=2)
    journal.run("left", 0.0, tokens=2)
    journal.ledger.view("read", (), 9.0)
    assert journal.tick(10.0) == ["left"]
    assert journal.tick(19.0) == ["read"]


def test_an_open_generation_is_kept_until_nobody_touched_it_for_long() -> None:
    journal = _Journal()
    journal.run("open", 0.0, tokens=1)
    assert journal.tick(99.0) == []
    assert journal.tick(100.0) == ["open"]


def test_only_so_many_parked_generations_are_kept_that_nobody_reads() -> None:
    journal = _Journal()
    for number in range(5):
        journal.run(f"parked{number}", float(number), tokens=1, sealed=True, unread=True)
        journal.run(f"handed-over{number}", float(number), tokens=1, sealed=True)
        journal.run(f"unread{number}", float(number), tokens=1, unread=True)
    assert journal.tick(5.0) == ["parked0", "parked1"]
    assert journal.tick(5.0) == []
    restarted = Ledger.recover(SETTINGS, journal.records, 5.0)
    assert len(restarted.tick(5.0).records) == 5, "who reads what was handed over asks at once"


def test_tombstones_count_as_ended_known_or_not() -> None:
    journal = _Journal()
    journal.run("known", 0.0, tokens=1)
    for name in ("known", "unknown"):
        outcome = journal.ledger.cancel(name, None, CancelReason.CLIENT, None, 1.0)
        journal.records += outcome.records
    assert [g.generation_id for g in journal.ledger.population(()).open] == []
    assert journal.tick(10.9) == []
    assert journal.tick(11.0) == ["known", "unknown"]


def test_a_recovered_ledger_forgets_the_same() -> None:
    journal = _Journal()
    for number in range(5):
        journal.run(f"g{number}", 0.0, tokens=2)
    recovered = Ledger.recover(SETTINGS, journal.records, 0.0)
    outcome = recovered.tick(1.0)
    assert [record.generation_id for record in outcome.records] == ["g0", "g1"]
    assert recovered.tick(10.0).records == (Forgotten("g2"), Forgotten("g3"), Forgotten("g4"))
