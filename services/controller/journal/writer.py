"""One thread that writes to a SQLite file in WAL mode: many writes, one commit."""

from __future__ import annotations

import asyncio
import enum
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.common.errors import DataLoss, ResourceExhausted, ShuntError, Unavailable

T = TypeVar("T")
_log = logging.getLogger(__name__)

Statement = tuple[str, tuple[object, ...]]
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG}
TIDY_STEPS = 64
TIDY_PAGES = 128
"""Given back by one step, whose log must find room."""
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(slots=True)
class _Group:
    statements: list[Statement]
    sync: bool
    writes: int
    future: asyncio.Future[None]


class _Marker(enum.Enum):
    RESET = enum.auto()
    TIDY = enum.auto()
    STOP = enum.auto()


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode that may be used from another thread. A file that is new gives
    back the pages it frees, when it is told to."""
    new = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        if new:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def lacks_room(error: sqlite3.Error) -> bool:
    """The disk did not take what was written."""
    code = _code(error)
    return code in _FULL or code == sqlite3.SQLITE_IOERR


def domain_error(error: sqlite3.Error, path: Path) -> ShuntError:
    """What a failed statement on a file means to the caller; nothing of its transaction was
    written."""
    if lacks_room(error):
        return ResourceExhausted(f"{path} cannot be written: {error}", field="journal")
    if _code(error) in _BROKEN:
        return damaged(path, str(error))
    return Unavailable(f"{path} did not answer: {error}", field="journal")


def damaged(path: Path, what: str) -> DataLoss:
    """Says which file is damaged and what can be done about it."""
    return DataLoss(
        f"{path} is damaged: {what}. To save what is whole: sqlite3 {path.name} .recover. To start"
        f" without it: move {path.name}* away (open generations and events are lost, models not)",
        field="journal",
    )


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _nothing() -> bool:
    return False


class SqliteWriter:
    """Groups writes that arrive within `interval_s` into one transaction, on the event loop, so
    that the thread is woken once a group.

    A group is fsynced before it is answered when any of its writes asks for it; the fsync covers
    every earlier group too, so the file always holds a prefix of what was written. For the same
    reason every write behind a failed one fails too, until `reset`.

    A group for which the disk has no room is tried again as often as `make_room` finds some. Both
    functions are called by the thread; `tidied` is told whether the log's room can be used again.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        interval_s: float,
        pending_limit: int,
        make_room: Callable[[], bool] = _nothing,
        tidied: Callable[[bool], object] = bool,
    ) -> None:
        """`path` is told in errors."""
        self._connection = connection
        self._path = path
        self._make_room = make_room
        self._tidied = tidied
        self._interval_s = interval_s
        self._pending_limit = pending_limit
        self._pending = 0
        self._loop = asyncio.get_running_loop()
        self._group: _Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.SimpleQueue[_Group | _Marker] = queue.SimpleQueue()
        self._failed: Exception | None = None
        self.exhausted = False
        """The last group failed for want of room, and none came since."""
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

    def tidy(self) -> None:
        """Has the pages that are free given back to the disk, and the log written anew from its
        start. The log keeps its size: with a full disk its room is what deletions need."""
        self._queue.put(_Marker.TIDY)

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
            if item is _Marker.TIDY:
                self._tidy()
                continue
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
            self._in_room(partial(self._transact, group))
        except sqlite3.Error as error:
            _log.error("journal write failed", extra={"error": str(error), "writes": group.writes})
            self.exhausted = lacks_room(error)
            return domain_error(error, self._path)
        except Exception as defect:  # the thread must live to say so
            return defect
        return None

    def _in_room(self, write: Callable[[], T]) -> T:
        """Writes, again and again while there is room to be made."""
        while True:
            try:
                return write()
            except sqlite3.Error as error:
                if not (lacks_room(error) and self._make_room()):
                    raise

    def _transact(self, group: _Group) -> None:
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

    def _tidy(self) -> None:
        try:
            emptied = self._in_room(self._fold)
            for _ in range(TIDY_STEPS):
                if not self._connection.execute("PRAGMA freelist_count").fetchone()[0]:
                    break
                self._in_room(self._give_back)
                emptied = self._in_room(self._fold)
        except sqlite3.Error as error:
            _log.info("the journal gives back nothing", extra={"why": str(error)})
            emptied = False
        self._tidied(emptied)

    def _give_back(self) -> None:
        # Its rows have no columns: execute would stop behind the first page.
        self._connection.executescript(f"PRAGMA incremental_vacuum({TIDY_PAGES})")

    def _fold(self) -> bool:
        """The log into the database; False where some of it must stay."""
        row = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        busy, frames, folded = row
        return not busy and frames == folded

    def _resolve(self, group: _Group, error: Exception | None) -> None:
        self._pending -= group.writes
        if group.future.done():
            return
        if error is None:
            group.future.set_result(None)
        else:
            group.future.set_exception(error)
