"""What holds for every store of the journal."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import DataLoss, Unavailable
from services.common.exchange import GenerationState, GenerationView
from services.common.generation import (
    CancelReason,
    FinishReason,
    ResponseTerms,
    TokenLogprob,
    TokenSpan,
)
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Kept,
    Record,
    Sealed,
)
from services.controller.journal.journal import LoggedEvent, Outlived, Saved
from tests.unit.controller.journal.samples import RECORDS, REQUEST, records
from tests.unit.controller.journal.stores import PostgresStore, SqliteStore, StoreUnderTest


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "j")
    return PostgresStore(request.getfixturevalue("cluster").new_journal())


def _write_until_killed(store: StoreUnderTest, kill_after: int) -> int:
    """Kills a writing process in mid-write; returns the last number it got an answer for."""
    acknowledged = -1
    with subprocess.Popen(
        [sys.executable, *store.writing],
        stdout=subprocess.PIPE,
        text=True,
        env=store.environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == kill_after:
                process.send_signal(signal.SIGKILL)
    return acknowledged


async def test_every_record_comes_back_as_it_was(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.write(RECORDS, fsync=True)
    assert (await store.recovered()).records == RECORDS


async def test_an_epoch_that_is_over_is_kept_as_one_record_a_choice(store: StoreUnderTest) -> None:
    def part(choice: int, start: int, end: int, reason: FinishReason | None = None) -> IdsAppended:
        ids = tuple(range(start, end))
        return IdsAppended(
            "g", TokenSpan(choice, start, ids, tuple(map(TokenLogprob, ids)), reason)
        )

    stop = FinishReason.STOP
    grant = Granted("g", 2, "i2", "f2", "p2", REQUEST, (TokenSpan(0, 4, (4,)),))
    written: list[Record] = [
        RECORDS[0],
        part(0, 0, 2),
        part(1, 0, 1),
        part(0, 2, 4),
        grant,
        part(0, 5, 6),
        part(1, 1, 2, stop),
        part(0, 6, 6, stop),
        Sealed("g", 2),
    ]
    async with store.open() as journal:
        await journal.write((HeadBound("other", "i", "f", "p", replace(REQUEST)),))
        await journal.write((IdsAppended("other", TokenSpan(0, 0, (9,))),))
        for record in written:
            await journal.write((record,))
        records = (await journal.recover()).records
    assert [record for record in records if record.generation_id == "g"] == [
        RECORDS[0],
        part(0, 0, 4),
        part(1, 0, 1),
        grant,
        part(0, 5, 6, stop),
        part(1, 1, 2, stop),
        Sealed("g", 2),
    ]
    assert IdsAppended("other", TokenSpan(0, 0, (9,))) in records


@pytest.mark.parametrize("end", [Sealed("g", 1), Ended("g", None, CancelReason.CLIENT, None)])
async def test_an_end_before_later_ids_is_kept_when_an_epoch_is_over(
    store: StoreUnderTest, end: Record
) -> None:
    stop, behind = TokenSpan(0, 0, (1, 2), (), FinishReason.STOP), TokenSpan(0, 2, (3,))
    async with store.open() as journal:
        await journal.write((RECORDS[0], IdsAppended("g", stop), IdsAppended("g", behind), end))
        records = (await journal.recover()).records
    whole = TokenSpan(0, 0, (1, 2, 3), (), FinishReason.STOP)
    assert records == (RECORDS[0], IdsAppended("g", whole), end)


async def test_a_forgotten_generation_leaves_nothing(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.write((*RECORDS, Sealed("other", 1)))
        await journal.write((Forgotten("g"),))
        assert (await journal.recover()).records == (Sealed("other", 1),)


async def test_the_newest_note_is_kept_and_a_deleted_one_is_not(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.write((Saved("a", "1"), Saved("a", "2"), Saved("b", "3"), Saved("b", None)))
        assert (await journal.recover()).saved == {"a": "2"}


async def test_only_the_newest_events_are_kept(store: StoreUnderTest) -> None:
    async with store.open(events_kept=3) as journal:
        events = [LoggedEvent(n, 0.5, "k", "n", "p", "g", {"a": "b"}, n) for n in range(1, 6)]
        await journal.write(events)
        assert (await journal.recover()).events == tuple(events[2:])


async def test_settled_waits_for_what_was_written_before(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.settled()
        written = journal.write(RECORDS)
        await journal.settled()
        assert written.done()


@pytest.mark.parametrize("kill_after", [1, 23, 140])
async def test_a_killed_process_lost_nothing_that_was_acknowledged(
    store: StoreUnderTest, kill_after: int
) -> None:
    acknowledged = await asyncio.to_thread(_write_until_killed, store, kill_after)
    records = (await store.recovered()).records
    starts = [record.span.start for record in records if isinstance(record, IdsAppended)]
    assert starts == list(range(len(starts)))
    assert len(starts) > acknowledged


@pytest.mark.parametrize(
    "damage", [{"kind": 9}, {"body": b"\xff"}, {"body": b""}, {"kind": 5, "body": b"\x10\x09"}]
)
@pytest.mark.parametrize("with_checksum", [False, True])
async def test_a_damaged_record_is_told(
    store: StoreUnderTest, damage: dict[str, int | bytes], with_checksum: bool
) -> None:
    async with store.open() as journal:
        await journal.write((RECORDS[0],))
    store.alter(with_checksum=with_checksum, **damage)
    with pytest.raises(DataLoss):
        await store.recovered()


async def test_rows_are_checked_before_they_are_joined(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        spans = [IdsAppended("g", TokenSpan(0, n, (n,))) for n in range(2)]
        await journal.write((RECORDS[0], *spans))
        store.alter(with_checksum=False, body=b"")
        with pytest.raises((DataLoss, Unavailable)):
            await journal.write((Sealed("g", 1),))


async def test_numbers_are_never_given_again(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.write((RECORDS[0], RECORDS[1]))
    async with store.open() as journal:
        await journal.write((Sealed("other", 1),))
        assert (await journal.recover()).records == (*RECORDS[:2], Sealed("other", 1))


async def test_writes_that_wait_share_a_group(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        spans = [IdsAppended("g", TokenSpan(0, n, (n,))) for n in range(500)]
        await asyncio.gather(*(journal.write((span,)) for span in spans))
        assert (await journal.recover()).records == tuple(spans)


@given(st.lists(records(64), max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_records_come_back(store: StoreUnderTest, written: list[Record]) -> None:
    one_each = {record.generation_id: record for record in written}.values()
    async with store.open() as journal:
        await journal.write([Forgotten(record.generation_id) for record in one_each])
        await journal.write(tuple(one_each), fsync=True)
        found = (await journal.recover()).records
        assert [r for r in found if r in one_each] == list(one_each)
        await journal.write([Forgotten(record.generation_id) for record in one_each])


KEPT = GenerationView(
    replace(REQUEST, response=ResponseTerms(store=True, background=False, details='{"a":"ü"}')),
    (TokenSpan(0, 0, (1, 2), (), FinishReason.STOP), TokenSpan(1, 0, (3,))),
    2,
    None,
    GenerationState.FINISHED,
    ("exact", "other"),
)


async def test_what_is_kept_stands_by_itself_instead_of_its_records(store: StoreUnderTest) -> None:
    cancelled = replace(KEPT, state=GenerationState.CANCELLED)
    async with store.open() as journal:
        await journal.write((*RECORDS, Sealed("other", 1)))
        assert await journal.kept("g") is None
        kept = journal.write((Kept("g", KEPT), Kept("h", cancelled)))
        assert await journal.kept("g") == KEPT  # behind what was written before
        await kept
    async with store.open() as journal:
        assert (await journal.recover()).records == (Sealed("other", 1),)
        assert await journal.kept("g") == KEPT
        assert await journal.kept("h") == cancelled
        await journal.write((Kept("g", cancelled),))
        assert await journal.kept("g") == cancelled


async def test_what_is_kept_is_deleted_for_good(store: StoreUnderTest) -> None:
    async with store.open() as journal:
        await journal.write((Kept("g", KEPT), Kept("h", KEPT)))
        await journal.write((Forgotten("g"), Ended("g", None, CancelReason.CLIENT, None)))
        assert await journal.kept("g") is None
        assert await journal.kept("h") == KEPT
        ended = (Ended("g", None, CancelReason.CLIENT, None),)
        assert (await journal.recover()).records == ended


async def test_what_was_kept_long_enough_goes_and_the_oldest_of_too_many(
    store: StoreUnderTest,
) -> None:
    now_s = 0
    async with store.open(wall_clock=lambda: float(now_s)) as journal:
        for now_s in range(6):
            await journal.write((Kept(f"g{now_s}", KEPT),))

        async def there() -> list[int]:
            return [n for n in range(6) if await journal.kept(f"g{n}") is not None]

        await journal.write((Outlived(2.0, 10),))
        assert await there() == [2, 3, 4, 5]
        await journal.write((Outlived(0.0, 3),))
        assert await there() == [3, 4, 5]
        await journal.write((Outlived(0.0, 0),))
        assert await there() == []
