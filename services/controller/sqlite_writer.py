"""One thread that writes to a SQLite file in WAL mode: many writes, one commit."""

from __future__ import annotations

import asyncio
import enum
import logging
import queue
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import DataLoss, ResourceExhausted, ShuntError, Unavailable

_log = logging.getLogger(__name__)

Statement = tuple[str, tuple[object, ...]]
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(slots=True)
class _Group:
    statements: list[Statement]
    sync: bool
    writes: int
    future: asyncio.Future[None]


class _Marker(enum.Enum):
    RESET = enum.auto()
    STOP = enum.auto()


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode that may be used from another thread."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def domain_error(error: sqlite3.Error) -> ShuntError:
    """What a failed statement means to the caller; nothing of its transaction was written."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _FULL or code == sqlite3.SQLITE_IOERR:
        return ResourceExhausted(f"the journal cannot be written: {error}", field="journal")
    if code in _BROKEN:
        return DataLoss(f"the journal is damaged: {error}", field="journal")
    return Unavailable(f"the journal did not answer: {error}", field="journal")


class SqliteWriter:
    """Groups writes that arrive within `interval_s` into one transaction, on the event loop, so
    that the thread is woken once a group.

    A group is fsynced before it is answered when any of its writes asks for it; the fsync covers
    every earlier group too, so the file always holds a prefix of what was written. For the same
    reason every write behind a failed one fails too, until `reset`.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, interval_s: float, pending_limit: int
    ) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._pending_limit = pending_limit
        self._pending = 0
        self._loop = asyncio.get_running_loop()
        self._group: _Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.SimpleQueue[_Group | _Marker] = queue.SimpleQueue()
        self._failed: Exception | None = None
        self._synced: bool | None = None
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Too many writes wait already."""
        return self._pending >= self._pending_limit

    def write(self, statements: Sequence[Statement], *, sync: bool) -> asyncio.Future[None]:
        """Resolves when the statements are committed, all of them or none; writes of one group
        share the future. A write with `sync` does not wait for the interval.

        Raises ResourceExhausted while it is full. The future fails with
        ResourceExhausted (disk full), DataLoss (damaged file) or Unavailable; with anything else
        for a defect.
        """
        if self.full:
            raise ResourceExhausted("too many writes wait for the journal")
        self._pending += 1
        if self._group is None:
            self._group = _Group([], False, 0, self._loop.create_future())
            self._timer = self._loop.call_later(self._interval_s, self._flush)
        group = self._group
        group.statements += statements
        group.writes += 1
        if sync:
            group.sync = True
            self._flush()
        return group.future

    def reset(self) -> None:
        """Takes writes again after a failure; the caller has read again what the file holds."""
        self._flush()
        self._queue.put(_Marker.RESET)

    def stop(self) -> None:
        """Hands over what waits; `join` waits until it is committed."""
        self._flush()
        self._queue.put(_Marker.STOP)

    def join(self) -> None:
        """Waits for the thread, after `stop`; blocks."""
        self._thread.join()
        self._connection.close()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._group is not None:
            self._queue.put(self._group)
            self._group = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not _Marker.STOP:
            if isinstance(item, _Marker):
                self._failed = None
                continue
            self._failed = self._failed or self._commit(item)
            try:
                self._loop.call_soon_threadsafe(self._resolve, item, self._failed)
            except RuntimeError:
                _log.warning("nobody waits for these writes", extra={"writes": item.writes})

    def _commit(self, group: _Group) -> Exception | None:
        try:
            if group.sync is not self._synced:
                mode = "FULL" if group.sync else "NORMAL"
                self._connection.execute(f"PRAGMA synchronous={mode}")
                self._synced = group.sync
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, parameters in group.statements:
                    self._connection.execute(sql, parameters)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            _log.error("journal write failed", extra={"error": str(error), "writes": group.writes})
            return domain_error(error)
        except Exception as defect:  # the thread must live to say so
            return defect
        return None

    def _resolve(self, group: _Group, error: Exception | None) -> None:
        self._pending -= group.writes
        if group.future.done():
            return
        if error is None:
            group.future.set_result(None)
        else:
            group.future.set_exception(error)
