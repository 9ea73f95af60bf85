"""The journal on a disk that is really full: a file system of a few MiB, mounted for the test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.errors import ResourceExhausted, Unavailable
from services.common.exchange import Checkpoint, ResumeQuestion, Route
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.outcomes import LedgerSettings, RunsAt, ServingHead
from services.controller.core.ledger.records import Ended, Forgotten, Granted, IdsAppended
from services.controller.event_log import EventLog
from services.controller.generations import LedgerRuntime
from services.controller.journal.journal import JournalRoom
from services.controller.journal.sqlite import SqliteJournal
from services.controller.signal import Signal
from tests.small_disk import fill, small_disk
from tests.unit.controller.journal import schema2_file

DISK_BYTES = 32 << 20
RESERVE_BYTES = 4 << 20
REQUEST = GenerationRequest("g", ModelRef("m", "d"), (1,), Sampling(max_tokens=100_000))
ROUTE = Route("p", "f2", "i2", "h:1", 1.0, ModelRef("m", "d"), max_positions=1 << 20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK_BYTES) as path:
        yield path


@asynccontextmanager
async def opened(disk: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(disk / "j", commit_interval_s=0.0, reserve_bytes=RESERVE_BYTES)
    try:
        yield journal
    finally:
        await journal.close()


def ids(name: str, number: int) -> IdsAppended:
    return IdsAppended(name, TokenSpan(0, 1000 * number, tuple(range(1000))))


async def until(journal: SqliteJournal, room: JournalRoom) -> None:
    async with asyncio.timeout(60):
        while journal.room is not room:
            journal.tend()
            await asyncio.sleep(0.01)


async def exhaust(journal: SqliteJournal) -> None:
    much = [ids("much", number) for number in range(20_000)]
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        await journal.write(much, fsync=True)


class _Timed(LedgerRuntime):
    now_s = 0.0


def generations_over(journal: SqliteJournal) -> _Timed:
    made: _Timed = _Timed(
        LedgerSettings(),
        journal,
        EventLog(journal, lambda: 0.0, 10),
        heads=lambda: (ServingHead(ROUTE, takes_new=True),),
        coming=lambda: (),
        runs_at=lambda formation_id: RunsAt("p", REQUEST.model),
        deployed=lambda model: True,
        kv_source=lambda left, name, handed_on: None,
        began=lambda bound: None,
        heads_changed=Signal(),
        clock=lambda: made.now_s,
    )
    return made


async def test_a_group_that_finds_the_disk_full_is_written_into_the_reserve(disk: Path) -> None:
    async with opened(disk) as journal:
        assert journal.room is JournalRoom.ENOUGH
        await journal.write((ids("g", 0),), fsync=True)
        fill(disk / "other")
        await journal.write([ids("g", number) for number in range(1, 300)], fsync=True)
        assert journal.room is JournalRoom.RESERVE
        assert len((await journal.recover()).records) == 300


async def test_streams_move_on_a_full_disk_until_the_reserve_is_used_up(disk: Path) -> None:
    async with opened(disk) as journal:
        generations = generations_over(journal)
        held = TokenSpan(0, 0, tuple(range(2000)))
        await generations.checkpoint([Checkpoint("g", 1, "i", "f", REQUEST, (held,))])
        fill(disk / "other")
        await journal.write([ids("x", number) for number in range(300)], fsync=True)
        more = TokenSpan(0, 2000, (7,))
        with pytest.raises(ResourceExhausted, match="disk is full"):
            generations.checkpoint([Checkpoint("g", 1, "i", "f", REQUEST, (more,))])
        for epoch in range(1, 201):
            grant = await generations.resume(ResumeQuestion("g", epoch, REQUEST, (more,), "f"), 0.0)
            assert (grant.epoch, grant.base[0].ids) == (epoch + 1, (*held.ids, 7))
        await generations.cancel("other", None, CancelReason.CLIENT, None)
        again = generations_over(journal)
        again.recover(await journal.recover())
        assert (await again.view("g")).epoch == 201


async def test_without_room_for_a_grant_it_is_refused_at_once_and_nothing_is_granted(
    disk: Path,
) -> None:
    async with opened(disk) as journal:
        generations = generations_over(journal)
        span = TokenSpan(0, 0, (5,))
        await generations.checkpoint([Checkpoint("g", 1, "i", "f", REQUEST, (span,))])
        fill(disk / "other")
        await exhaust(journal)
        generations.recover(await journal.recover())
        assert journal.room is JournalRoom.NONE
        question = ResumeQuestion("g", 1, REQUEST, (span,), "f")
        for _ in range(3):
            with pytest.raises(Unavailable, match="disk is full") as refused:
                await generations.resume(question, 60.0)
            assert refused.value.retry_after_s >= 1
        assert (await generations.view("g")).epoch == 1
        (disk / "other").unlink()
        await until(journal, JournalRoom.ENOUGH)
        assert (await generations.resume(question, 0.0)).epoch == 2


async def test_what_is_forgotten_gives_its_room_back_and_the_reserve_is_taken_again(
    disk: Path,
) -> None:
    async with opened(disk) as journal:
        for name in range(10):
            await journal.write([ids(f"g{name}", number) for number in range(400)])
        fill(disk / "other")
        while journal.room is JournalRoom.ENOUGH:
            await journal.write((ids("g0", 9000),), fsync=True)
        for name in range(10):
            await journal.write((Forgotten(f"g{name}"),), fsync=True)
        (disk / "other").write_bytes(bytes(1 << 20))
        fill(disk / "other")
        await until(journal, JournalRoom.ENOUGH)
        assert (disk / "j").stat().st_size < 1 << 20
        assert (disk / "j-reserve").stat().st_size == RESERVE_BYTES


async def test_what_has_ended_is_forgotten_little_by_little_on_a_full_disk(disk: Path) -> None:
    async with opened(disk) as journal:
        generations = generations_over(journal)
        for number in range(100):
            await generations.cancel(f"g{number}", None, CancelReason.CLIENT, None)
        fill(disk / "other")
        await journal.write([ids("x", number) for number in range(300)], fsync=True)
        assert journal.room is JournalRoom.RESERVE
        generations.now_s = 1000.0
        for left in (68, 36, 4, 0):
            await generations.tick()
            records = (await journal.recover()).records
            assert sum(isinstance(record, Ended) for record in records) == left


async def test_a_journal_starts_on_a_full_disk_from_its_reserve(disk: Path) -> None:
    async with opened(disk) as journal:
        await journal.write((ids("g", 0),), fsync=True)
    fill(disk / "other")
    async with opened(disk) as journal:
        assert journal.room is JournalRoom.RESERVE
        assert (await journal.recover()).records == (ids("g", 0),)
        granted = Granted("g", 2, "i", "f", "p", REQUEST, ())
        await journal.write((granted,), fsync=True)


async def test_an_older_schema_is_carried_over_in_the_reserves_room_or_left_whole(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = tuple(ids(f"g{number % 9}", number) for number in range(1000))
    schema2_file.make(disk / "j", written)
    file_bytes = (disk / "j").stat().st_size
    for reserve_bytes in (file_bytes // 2, file_bytes * 3 // 2):
        (disk / "j-reserve").write_bytes(bytes(reserve_bytes))
        fill(disk / "other")
        if reserve_bytes < file_bytes:
            with pytest.raises(ResourceExhausted, match=f"{disk / 'j'} cannot be written"):
                SqliteJournal(disk / "j", reserve_bytes=reserve_bytes)
            (disk / "other").unlink()
    with caplog.at_level(logging.ERROR):
        journal = SqliteJournal(disk / "j", reserve_bytes=reserve_bytes)
        assert journal.room is JournalRoom.RESERVE
        assert (await journal.recover()).records == written
        await journal.close()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_disk_without_room_for_the_journal_is_told_by_file(disk: Path) -> None:
    fill(disk / "other")
    with pytest.raises(ResourceExhausted, match=str(disk / "j")):
        SqliteJournal(disk / "j")
