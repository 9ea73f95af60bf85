"""The one session that may write: each transaction goes through the epoch's gate first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from psycopg.pq import TransactionStatus

from services.common.errors import Superseded
from services.common.exchange import GenerationView
from services.controller.journal.groups import Statement
from services.controller.journal.journal import Recovered
from services.controller.journal.place import PostgresPlace
from services.controller.journal.postgres import lease
from services.controller.journal.postgres.connecting import connect
from services.controller.journal.postgres.joining import INSERT, INSERT_MANY, JOIN, ends, join
from services.controller.journal.postgres.reading import Follower
from services.controller.journal.postgres.schema import Connection
from services.controller.journal.rows import read_kept

_KEPT = "SELECT generation_id, written_s, body, checksum FROM shunt_kept WHERE generation_id = %s"
_LOST_LEASE = "another controller leads"


def _in_bulk(statements: Sequence[Statement]) -> Iterator[Statement]:
    """The same, with rows of records that follow one another as one statement."""
    for sql, together in groupby(statements, itemgetter(0)):
        if sql == INSERT:
            yield INSERT_MANY, tuple(map(list, zip(*(row for _, row in together), strict=True)))
        elif sql != JOIN:
            yield from together


class Session:
    """Blocks; for one thread. Every method raises psycopg.Error, and Superseded where another
    controller has taken the lease."""

    def __init__(
        self,
        place: PostgresPlace,
        me: str,
        address: str,
        connection: Connection,
        taken: lease.Taken,
    ) -> None:
        self._place = place
        self._me = me
        self._address = address
        self._connection = connection
        self._epoch = taken.epoch

    def commit(self, statements: Sequence[Statement], reaches: int) -> None:
        """Stores all or nothing, durably; `reaches` is the highest number among the rows."""
        over = ends(statements)
        try:
            with self._connection.pipeline():  # one way there and back, unless epochs are over
                self._connection.execute("BEGIN")
                self._connection.execute(lease.ENTER, (self._epoch, reaches))
                for sql, parameters in _in_bulk(statements):
                    self._connection.execute(sql, parameters)
                if not over:
                    self._connection.execute("COMMIT")
            if over:
                join(self._connection, over)
                self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def kept(self, generation_id: str) -> GenerationView | None:
        """What is kept of a generation; raises DataLoss where that is damaged."""
        row = self._connection.execute(_KEPT, (generation_id,), binary=True).fetchone()
        return None if row is None else read_kept(row)

    def begin_again(self, now_s: float) -> Recovered:
        """A new connection with an epoch of its own, and what the journal holds by then: nothing
        that an old one left on its way comes behind it."""
        self._connection.close()
        self._connection = connect(self._place)
        with self._connection.transaction():
            taken = lease.take_again(self._connection, self._me, self._address)
            if taken is None:
                raise Superseded(_LOST_LEASE, field="journal")
            recovered = Follower(self._place.name).whole(self._connection, now_s)
        self._epoch = taken.epoch
        return recovered

    def close(self) -> None:
        """Leaves the lease to whoever comes."""
        try:
            if not self._connection.closed:
                lease.release(self._connection, self._epoch)
        finally:
            self._connection.close()

    def _roll_back(self) -> None:
        connection = self._connection
        if not connection.closed and connection.info.transaction_status is not (
            TransactionStatus.IDLE
        ):
            connection.rollback()
