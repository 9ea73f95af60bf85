"""The journal in an embedded SQLite file: one row a record, in the order they were written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from services.common.errors import DataLoss, ShuntError
from services.common.exchange import GenerationView
from services.controller.core.ledger.records import Granted, HeadBound, IdsAppended
from services.controller.journal.bodies import KINDS
from services.controller.journal.groups import Statement
from services.controller.journal.journal import Item, JournalRoom, Recovered
from services.controller.journal.log import LogWatch, log_of
from services.controller.journal.reserve import Reserve
from services.controller.journal.rows import Row, checked, read_kept, read_row, recovered_of
from services.controller.journal.schema import (
    INSERT,
    MALFORMED,
    any_text,
    check_trees,
    prepare,
    readable,
)
from services.controller.journal.statements import Dialect, Statements
from services.controller.journal.writer import (
    SqliteWriter,
    damaged,
    domain_error,
    lacks_room,
    open_connection,
)

WORKABLE_BYTES = 1 << 20
"""With less than this to write in, a journal that failed is not tried again."""
_BOUND, _GRANTED, _APPENDED = (KINDS[kind] for kind in (HeadBound, Granted, IdsAppended))
_OF_EPOCH = (
    f"generation_id = ?1 AND kind = {_APPENDED} AND number > (SELECT max(number) FROM records"
    f" WHERE generation_id = ?1 AND kind IN ({_BOUND}, {_GRANTED}))"
)
_JOIN = (
    "INSERT INTO records"
    f" SELECT ?2, written_s, ?1, {_APPENDED}, body,"
    f" row_checksum(?2, written_s, ?1, {_APPENDED}, body)"
    " FROM (SELECT max(written_s) AS written_s,"
    " join_bodies(number, written_s, generation_id, body, checksum) AS body"
    f" FROM records WHERE {_OF_EPOCH} GROUP BY generation_id HAVING count(*) > 1)"
)
_DROP_JOINED = (
    f"DELETE FROM records WHERE {_OF_EPOCH} AND number <"
    f" (SELECT max(number) FROM records WHERE generation_id = ?1 AND kind = {_APPENDED})"
)
_KEPT = "SELECT * FROM kept WHERE generation_id = ?"
_LAST_NUMBER = "SELECT max(number) FROM records"


def _join(name: str, number: int) -> Sequence[Statement]:
    return (_JOIN, (name, number)), (_DROP_JOINED, (name,))


_DIALECT = Dialect(
    insert=INSERT,
    forget="DELETE FROM records WHERE generation_id = ?",
    keep="INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)",
    drop_kept="DELETE FROM kept WHERE generation_id = ?",
    outlive="DELETE FROM kept WHERE written_s < ?",
    outlive_most=(
        "DELETE FROM kept WHERE written_s <="
        " (SELECT written_s FROM kept ORDER BY written_s DESC LIMIT 1 OFFSET ?)"
    ),
    event="INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    drop_events="DELETE FROM events WHERE number <= ?",
    save="INSERT OR REPLACE INTO saved VALUES (?, ?, ?)",
    unsave="DELETE FROM saved WHERE key = ?",
    join=_join,
)


class SqliteJournal:
    """A Journal in one file; grants are fsynced, tokens committed in groups. A reserve beside the
    file is given away when the disk is full, and taken back when there is room again."""

    def __init__(
        self,
        path: Path,
        *,
        commit_interval_s: float = 0.01,
        pending_limit: int = 10_000,
        events_kept: int = 10_000,
        sync_always: bool = False,
        reserve_bytes: int = 0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens or creates the file; raises DataLoss when it is no journal of this version, and
        ResourceExhausted when the disk has no room to open it."""
        self._path = path
        self._sync_always = sync_always
        self._wall_clock = wall_clock
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"), reserve_bytes)
        self._log_watch = LogWatch(path)
        connection, last_number = self._open()
        self._reserve.take()
        self._statements = Statements(
            _DIALECT, last_number=last_number, events_kept=events_kept, wall_clock=wall_clock
        )
        self._writer = SqliteWriter(
            connection,
            path,
            interval_s=commit_interval_s,
            pending_limit=pending_limit,
            make_room=self._reserve.release,
            tidied=self._tidied,
        )
        self._last: asyncio.Future[None] | None = None

    def _open(self) -> tuple[sqlite3.Connection, int]:
        """The connection, and the number of the last row."""
        while True:
            try:
                return self._prepared()
            except sqlite3.Error as error:
                if not (lacks_room(error) and self._reserve.release()):
                    raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> ShuntError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code == sqlite3.SQLITE_ERROR:  # what is asked for is always the same
            return damaged(self._path, str(error))
        return domain_error(error, self._path)

    def _prepared(self) -> tuple[sqlite3.Connection, int]:
        connection = open_connection(self._path)
        try:
            readable(connection, self._path)
            frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            self._log_watch.opened(frames)
            prepare(connection, self._path)
            return connection, connection.execute(_LAST_NUMBER).fetchone()[0] or 0
        except BaseException:
            connection.close()
            self._log_watch.closed()
            raise

    @property
    def full(self) -> bool:
        return self._writer.full

    @property
    def room(self) -> JournalRoom:
        if self._writer.exhausted:
            return JournalRoom.NONE
        return JournalRoom.ENOUGH if self._reserve.held else JournalRoom.RESERVE

    def tend(self) -> None:
        if self.room is not JournalRoom.ENOUGH:
            self._writer.tidy()

    def _tidied(self, emptied: bool) -> None:
        self._reserve.take()
        log = log_of(self._path)
        self._try_again(log.stat().st_size if emptied and log.exists() else 0)

    def _try_again(self, reusable_bytes: int = 0) -> None:
        if self._writer.exhausted:
            disk = os.statvfs(self._path.parent)
            room_bytes = disk.f_bavail * disk.f_frsize + reusable_bytes
            self._writer.exhausted = room_bytes < WORKABLE_BYTES

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Future[None]:
        statements = [statement for item in items for statement in self._statements.of(item)]
        self._last = self._writer.write(statements, sync=fsync or self._sync_always)
        return asyncio.shield(self._last)

    async def kept(self, generation_id: str) -> GenerationView | None:
        try:
            row = await self._writer.row(_KEPT, (generation_id,))
            return None if row is None else read_kept(row)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    async def settled(self) -> None:
        if self._last is not None:
            await asyncio.shield(self._last)

    async def recover(self) -> Recovered:
        if self._last is not None:
            await asyncio.wait([self._last])
        try:
            recovered = await asyncio.to_thread(_read, self._path, self._wall_clock())
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        except DataLoss as error:
            raise damaged(self._path, error.message) from error
        except MALFORMED as error:
            raise damaged(self._path, str(error)) from error
        self._last = None
        self._try_again()
        self._writer.reset()
        return recovered

    async def confirmed(self) -> None:
        """At once: the lock on the directory keeps others away."""

    async def close(self) -> None:
        self._writer.stop()
        await asyncio.to_thread(self._writer.join)
        self._log_watch.closed()


def _read(path: Path, now_s: float) -> Recovered:
    with closing(open_connection(path)) as connection:
        connection.text_factory = any_text
        connection.execute("BEGIN")
        check_trees(connection)
        return recovered_of(
            map(read_row, _rows(connection, "records")),
            _rows(connection, "events"),
            _rows(connection, "saved"),
            now_s,
        )


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[Row]:
    for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1"):
        yield checked(table, row)
