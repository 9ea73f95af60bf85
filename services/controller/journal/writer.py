"""One thread that writes to a SQLite file in WAL mode: many writes, one commit."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.common.errors import DataLoss, ResourceExhausted, ShuntError, Unavailable
from services.controller.journal.groups import Group, GroupWriter
from services.controller.journal.rows import Row

T = TypeVar("T")
_log = logging.getLogger(__name__)

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG}
TIDY_STEPS = 64
TIDY_PAGES = 128
"""Given back by one step, whose log must find room."""
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


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


class SqliteWriter(GroupWriter):
    """The group that is to outlive the machine is fsynced; the fsync covers every earlier one.

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
        self._synced: bool | None = None
        super().__init__(interval_s=interval_s, pending_limit=pending_limit)

    def tidy(self) -> None:
        """Has the pages that are free given back to the disk, and the log written anew from its
        start. The log keeps its size: with a full disk its room is what deletions need."""
        self._queue.put(self._tidy)

    def row(self, query: str, key: tuple[object, ...]) -> asyncio.Future[Row | None]:
        """The first row that a query finds behind all that was written; fails as it does."""

        def read() -> Row | None:
            found: Row | None = self._connection.execute(query, key).fetchone()
            return found

        return self.ask(read)

    def join(self, timeout_s: float | None = None) -> bool:
        ended = super().join(timeout_s)
        self._connection.close()
        return ended

    def _commit(self, group: Group) -> Exception | None:
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

    def _transact(self, group: Group) -> None:
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
