"""Who does not lead yet: it reads the journal as it grows, and takes the lease when it is free."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from services.controller.journal.journal import Recovered
from services.controller.journal.place import PostgresPlace
from services.controller.journal.postgres import lease
from services.controller.journal.postgres.connecting import connect
from services.controller.journal.postgres.reading import Follower
from services.controller.journal.postgres.schema import Connection, prepare
from services.controller.journal.postgres.session import Session

PRUNE_LOOKS = 50
"""What was deleted is dropped here every so many looks."""


@dataclass(frozen=True, slots=True)
class Won:
    """What a new leader begins with."""

    session: Session
    recovered: Recovered
    last_number: int


class Candidate:
    """Blocks; one call at a time, from any thread."""

    def __init__(
        self,
        place: PostgresPlace,
        me: str,
        address: str,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._place = place
        self._me = me
        self._address = address
        self._clock = clock
        self._patience = lease.Patience(lease_s)
        self._connection: Connection | None = None
        self._follower = Follower(place.name)
        self._looks = 0

    def look(self, now_unix_s: float) -> tuple[lease.Lease, Won | None]:
        """The lease as it is, and what is won if it was taken. Raises psycopg.Error, DataLoss and
        FailedPrecondition."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._place)
            prepare(self._connection, self._place.name)
        connection = self._connection
        self._follower.follow(connection)
        self._looks += 1
        if self._looks % PRUNE_LOOKS == 0:
            self._follower.prune(connection)
        seen = lease.look(connection)
        if not self._patience.over(seen, self._clock()):
            return seen, None
        with connection.transaction():
            taken = lease.take(connection, self._me, self._address, seen)
            if taken is None:
                return seen, None
            recovered = self._follower.whole(connection, now_unix_s)
        self._connection = None
        session = Session(self._place, self._me, self._address, connection, taken)
        return seen, Won(session, recovered, taken.last_number)

    def forget(self) -> None:
        """Begins anew with the next look: the database was away, and may have lost what it had not
        answered; or there is no next look."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None
        self._follower = Follower(self._place.name)
        self._patience.forget()
