"""One thread that writes to a SQLite file in WAL mode: many writes, one commit."""

from __future__ import annotations

import asyncio
import enum
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import DataLoss, ResourceExhausted, ShuntError, Unavailable

_log = logging.getLogger(__name__)

Statement = tuple[str, tuple[object, ...]]
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True, slots=True)
class _Write:
    statements: Sequence[Statement]
    sync: bool
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
    """Groups writes that arrive within `interval_s` into one transaction.

    A group is fsynced before it is answered when any of its writes asks for it; the fsync covers
    every earlier group too, so the file always holds a prefix of what was written. For the same
    reason every write behind a failed one fails too, until `reset`.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, interval_s: float, pending_limit: int
    ) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._queue: queue.Queue[_Write | _Marker] = queue.Queue(pending_limit)
        self._failed: ShuntError | None = None
        self._synced: bool | None = None
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def write(self, statements: Sequence[Statement], *, sync: bool) -> asyncio.Future[None]:
        """Resolves when the statements are committed, all of them or none.

        Raises ResourceExhausted when too many writes wait already. The future fails with
        ResourceExhausted (disk full), DataLoss (damaged file) or Unavailable.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        try:
            self._queue.put_nowait(_Write(statements, sync, future))
        except queue.Full:
            raise ResourceExhausted("too many writes wait for the journal") from None
        return future

    def reset(self) -> None:
        """Takes writes again after a failure; the caller has read again what the file holds."""
        self._queue.put(_Marker.RESET)

    def close(self) -> None:
        """Commits what waits and ends the thread; blocks."""
        self._queue.put(_Marker.STOP)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        marker: _Marker | None = None
        while marker is not _Marker.STOP:
            group, marker = self._gather()
            if group:
                self._failed = self._failed or self._commit(group)
                self._finish(group, self._failed)
            if marker is _Marker.RESET:
                self._failed = None

    def _gather(self) -> tuple[Sequence[_Write], _Marker | None]:
        """The next group: it ends with the interval, a write that cannot wait, or a marker."""
        item = self._queue.get()
        deadline = time.monotonic() + self._interval_s
        group: list[_Write] = []
        while not isinstance(item, _Marker):
            group.append(item)
            wait_s = 0.0 if item.sync else max(deadline - time.monotonic(), 0.0)
            try:
                item = self._queue.get(wait_s > 0, wait_s or None)
            except queue.Empty:
                return group, None
        return group, item

    def _commit(self, group: Sequence[_Write]) -> ShuntError | None:
        sync = any(write.sync for write in group)
        try:
            if sync is not self._synced:
                self._connection.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
                self._synced = sync
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for write in group:
                    for sql, parameters in write.statements:
                        self._connection.execute(sql, parameters)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            _log.error("journal write failed", extra={"error": str(error), "writes": len(group)})
            return domain_error(error)
        return None

    def _finish(self, group: Sequence[_Write], error: ShuntError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, tuple(group), error)
        except RuntimeError:
            _log.warning("nobody waits for these writes", extra={"writes": len(group)})


def _resolve(writes: Sequence[_Write], error: ShuntError | None) -> None:
    for write in writes:
        if write.future.done():
            continue
        if error is None:
            write.future.set_result(None)
        else:
            write.future.set_exception(error)
