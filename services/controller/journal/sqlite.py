"""The journal in an embedded SQLite file: one row a record, in the order they were written."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from services.common.errors import DataLoss, ShuntError
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
)
from services.controller.journal.bodies import KINDS
from services.controller.journal.journal import Item, JournalRoom, LoggedEvent, Recovered, Saved
from services.controller.journal.log import LogWatch, log_of
from services.controller.journal.reserve import Reserve
from services.controller.journal.rows import Row, checked, records_of, row_of, with_checksum
from services.controller.journal.schema import (
    INSERT,
    MALFORMED,
    any_text,
    check_trees,
    prepare,
    readable,
)
from services.controller.journal.writer import (
    SqliteWriter,
    Statement,
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
_LAST_NUMBER = "SELECT max(number) FROM records"
_FORGET = "DELETE FROM records WHERE generation_id = ?"
_EVENT = "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_EVENTS = "DELETE FROM events WHERE number <= ?"
_SAVE = "INSERT OR REPLACE INTO saved VALUES (?, ?, ?)"
_UNSAVE = "DELETE FROM saved WHERE key = ?"


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
        self._events_kept = events_kept
        self._sync_always = sync_always
        self._wall_clock = wall_clock
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"), reserve_bytes)
        self._log_watch = LogWatch(path)
        connection, last_number = self._open()
        self._reserve.take()
        self._next_number = 1 + last_number
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
        statements = [statement for item in items for statement in self._statements(item)]
        self._last = self._writer.write(statements, sync=fsync or self._sync_always)
        return asyncio.shield(self._last)

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

    async def close(self) -> None:
        self._writer.stop()
        await asyncio.to_thread(self._writer.join)
        self._log_watch.closed()

    def _statements(self, item: Item) -> Sequence[Statement]:
        if isinstance(item, IdsAppended):  # by far the most
            return ((INSERT, self._row(item)),)
        if isinstance(item, LoggedEvent):
            attributes = json.dumps(dict(item.attributes))
            about = (item.node_id, item.pipeline_id, item.generation_id, attributes, item.plan)
            return (
                (_EVENT, with_checksum(item.number, item.time_unix_s, item.kind, *about)),
                (_DROP_EVENTS, (item.number - self._events_kept,)),
            )
        if isinstance(item, Saved):
            if item.value is None:
                return ((_UNSAVE, (item.key,)),)
            return ((_SAVE, with_checksum(item.key, item.value)),)
        if isinstance(item, Forgotten):
            return ((_FORGET, (item.generation_id,)),)
        if isinstance(item, HeadBound) or (isinstance(item, Ended) and item.choice is not None):
            return ((INSERT, self._row(item)),)
        name = item.generation_id  # its epoch is over
        joined = (_JOIN, (name, self._number()))
        return (joined, (_DROP_JOINED, (name,)), (INSERT, self._row(item)))

    def _row(self, record: Record) -> tuple[object, ...]:
        return row_of(self._number(), self._wall_clock(), record)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def _read(path: Path, now_s: float) -> Recovered:
    with closing(open_connection(path)) as connection:
        connection.text_factory = any_text
        connection.execute("BEGIN")
        check_trees(connection)
        records: list[Record] = []
        ages_s: list[float] = []
        for row in _rows(connection, "records"):
            said = tuple(records_of(row))
            records += said
            ages_s += [max(0.0, now_s - row[1])] * len(said)
        return Recovered(
            records=tuple(records),
            events=tuple(map(_event, _rows(connection, "events"))),
            saved=dict(_rows(connection, "saved")),
            ages_s=tuple(ages_s),
        )


def _event(row: Row) -> LoggedEvent:
    number, time_s, kind, node_id, pipeline_id, generation_id, attributes, plan = row
    about = (node_id, pipeline_id, generation_id, json.loads(attributes), plan)
    return LoggedEvent(number, time_s, kind, *about)


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[Row]:
    for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1"):
        yield checked(table, row)
