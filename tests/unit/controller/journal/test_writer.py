from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from services.common.errors import DataLoss, ResourceExhausted, Unavailable
from services.controller.journal.writer import SqliteWriter, domain_error, open_connection

INSERT = "INSERT INTO numbers VALUES (?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    connection = open_connection(tmp_path / "j.db")
    connection.execute("CREATE TABLE numbers(n INTEGER PRIMARY KEY)")
    connection.close()
    return tmp_path / "j.db"


class _Traced:
    """A connection that keeps what it was told."""

    def __init__(self, path: Path) -> None:
        self.inner = open_connection(path)
        self.said: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def in_transaction(self) -> bool:
        return self.inner.in_transaction

    def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            self.gate.wait(60)
        self.said.append(sql)
        return self.inner.execute(sql, parameters)

    def close(self) -> None:
        self.inner.close()


def _writer(connection: object, **more: object) -> SqliteWriter:
    options = {"interval_s": 0.0, "pending_limit": 100, **more}
    return SqliteWriter(connection, Path("j.db"), **options)  # type: ignore[arg-type]


def _close(writer: SqliteWriter) -> None:
    writer.stop()
    writer.join()


def _numbers(path: Path) -> list[int]:
    connection = open_connection(path)
    try:
        return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n")]
    finally:
        connection.close()


@pytest.fixture
def traced(path: Path) -> _Traced:
    return _Traced(path)


async def test_writes_that_wait_share_one_commit(traced: _Traced, path: Path) -> None:
    traced.gate.clear()
    writer = _writer(traced, interval_s=0.02)
    futures = [writer.write([(INSERT, (n,))], sync=False) for n in range(20)]
    traced.gate.set()
    await asyncio.gather(*futures)
    assert traced.said.count("COMMIT") == 1
    _close(writer)
    assert _numbers(path) == list(range(20))


async def test_only_a_group_with_a_synced_write_is_fsynced(traced: _Traced) -> None:
    writer = _writer(traced)
    await writer.write([(INSERT, (1,))], sync=False)
    await writer.write([(INSERT, (2,))], sync=True)
    _close(writer)
    pragmas = [sql for sql in traced.said if "PRAGMA" in sql]
    assert pragmas == ["PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL"]


async def test_a_synced_write_does_not_wait_for_the_interval(traced: _Traced) -> None:
    writer = _writer(traced, interval_s=3600.0)
    async with asyncio.timeout(60):
        await writer.write([(INSERT, (1,))], sync=True)
    _close(writer)


async def test_a_failed_group_leaves_nothing_and_stops_what_comes_behind(
    traced: _Traced, path: Path
) -> None:
    writer = _writer(traced)
    pages = traced.inner.execute("PRAGMA page_count").fetchone()[0]
    traced.inner.execute(f"PRAGMA max_page_count={pages}")
    huge = [(INSERT, (n,)) for n in range(5000)]
    with pytest.raises(ResourceExhausted):
        await writer.write(huge, sync=True)
    with pytest.raises(ResourceExhausted):
        await writer.write([(INSERT, (7000,))], sync=True)
    assert _numbers(path) == []
    writer.reset()
    await writer.write([(INSERT, (7001,))], sync=True)
    _close(writer)
    assert _numbers(path) == [7001]


async def test_writes_queued_before_the_reset_still_fail(traced: _Traced, path: Path) -> None:
    writer = _writer(traced)
    bad = writer.write([("INSERT INTO nowhere VALUES (1)", ())], sync=True)
    late = writer.write([(INSERT, (1,))], sync=True)
    writer.reset()
    good = writer.write([(INSERT, (2,))], sync=True)
    assert isinstance((await asyncio.gather(bad, late, good, return_exceptions=True))[1], Exception)
    _close(writer)
    assert _numbers(path) == [2]


async def test_a_write_is_taken_whole_or_not_at_all(traced: _Traced, path: Path) -> None:
    writer = _writer(traced)
    with pytest.raises(Unavailable):
        await writer.write([(INSERT, (1,)), ("INSERT INTO nowhere VALUES (1)", ())], sync=True)
    writer.reset()
    await writer.write([(INSERT, (2,))], sync=True)
    _close(writer)
    assert _numbers(path) == [2]


async def test_a_defect_is_told_to_who_wrote_and_stops_what_comes_behind(traced: _Traced) -> None:
    writer = _writer(traced)
    async with asyncio.timeout(60):
        for value in ("\ud800", 2):
            with pytest.raises(UnicodeEncodeError):
                await writer.write([(INSERT, (value,))], sync=True)
    _close(writer)


async def test_close_commits_what_waits(traced: _Traced, path: Path) -> None:
    writer = _writer(traced, interval_s=3600.0)
    future = writer.write([(INSERT, (1,))], sync=False)
    _close(writer)
    await future
    assert _numbers(path) == [1]


async def test_the_queue_is_bounded(traced: _Traced) -> None:
    traced.gate.clear()
    writer = _writer(traced, pending_limit=2)
    futures = [writer.write([(INSERT, (0,))], sync=True)]
    with pytest.raises(ResourceExhausted):
        futures += [writer.write([(INSERT, (n,))], sync=True) for n in range(1, 9)]
    traced.gate.set()
    await futures[0]
    _close(writer)


async def test_a_reader_that_gave_up_changes_nothing(traced: _Traced, path: Path) -> None:
    writer = _writer(traced)
    writer.write([(INSERT, (1,))], sync=True).cancel()
    await writer.write([(INSERT, (2,))], sync=True)
    _close(writer)
    assert _numbers(path) == [1, 2]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, ResourceExhausted),
        (sqlite3.SQLITE_IOERR_WRITE, ResourceExhausted),
        (sqlite3.SQLITE_CORRUPT, DataLoss),
        (sqlite3.SQLITE_NOTADB, DataLoss),
        (sqlite3.SQLITE_BUSY, Unavailable),
    ],
)
def test_each_failure_of_the_file_has_its_error(code: int, kind: type[Exception]) -> None:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    assert type(domain_error(error, Path("j.db"))) is kind
