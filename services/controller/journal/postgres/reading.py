"""The journal read from PostgreSQL, once, or as it grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString

from services.common.errors import DataLoss, ShuntError
from services.controller.journal.journal import Recovered
from services.controller.journal.postgres.failures import damaged
from services.controller.journal.postgres.schema import Connection
from services.controller.journal.rows import Read, Row, checked, read_row, recovered_of
from services.controller.journal.schema import MALFORMED

ROWS_AT_ONCE = 5000
_GROWN = (
    "SELECT number, written_s, generation_id, kind, body, checksum FROM shunt_records"
    " WHERE number > %s ORDER BY number LIMIT %s"
)
_NUMBERS = "SELECT number FROM shunt_records ORDER BY number"
_EVENTS = "SELECT * FROM shunt_events ORDER BY number"
_SAVED = "SELECT * FROM shunt_saved ORDER BY key"


class Follower:
    """What the records are, kept up with those who write them: each row is read once.

    Rows come in the order of their numbers, for one session writes at a time, and no number is
    given twice.
    """

    def __init__(self, name: str) -> None:
        """`name` is the database's, as it may be told."""
        self._name = name
        self._rows: dict[int, Read] = {}
        self._last = 0

    @property
    def rows(self) -> int:
        return len(self._rows)

    def follow(self, connection: Connection) -> None:
        """Reads what was added; raises DataLoss, psycopg.Error."""
        try:
            while True:
                more = connection.execute(_GROWN, (self._last, ROWS_AT_ONCE), binary=True)
                for row in more:
                    self._rows[row[0]] = read_row(checked("records", row))
                    self._last = row[0]
                if more.rowcount < ROWS_AT_ONCE:
                    return
        except DataLoss as error:
            raise damaged(self._name, error.message) from error
        except MALFORMED as error:
            raise damaged(self._name, str(error)) from error

    def prune(self, connection: Connection) -> None:
        """Drops what was deleted."""
        there = [number for (number,) in connection.execute(_NUMBERS, binary=True)]
        self._rows = {number: self._rows[number] for number in there if number in self._rows}

    def whole(self, connection: Connection, now_s: float) -> Recovered:
        """All that the journal holds; in the transaction of who may write, so that nothing is
        added meanwhile. Raises DataLoss, psycopg.Error."""
        self.follow(connection)
        self.prune(connection)
        try:
            return recovered_of(
                self._rows.values(),
                _checked(connection, "events", _EVENTS),
                _checked(connection, "saved", _SAVED),
                now_s,
            )
        except ShuntError as error:
            raise damaged(self._name, error.message) from error
        except MALFORMED as error:
            raise damaged(self._name, str(error)) from error


def _checked(connection: Connection, table: str, statement: LiteralString) -> Iterator[Row]:
    for row in connection.execute(statement, binary=True):
        yield checked(table, row)
