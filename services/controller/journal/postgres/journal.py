"""The journal in PostgreSQL: one controller leads and writes, others follow and wait their turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence

import psycopg

from services.common.errors import ShuntError, Superseded, Unavailable
from services.common.exchange import GenerationView
from services.controller.journal.journal import Item, JournalRoom, Recovered
from services.controller.journal.place import PostgresPlace
from services.controller.journal.postgres.candidate import Candidate
from services.controller.journal.postgres.failures import domain_error
from services.controller.journal.postgres.joining import INSERT, JOIN
from services.controller.journal.postgres.writer import PostgresWriter
from services.controller.journal.statements import Dialect, Statements

_log = logging.getLogger(__name__)
LOOKS = 10
"""A standby looks so many times in the life of a lease."""
RENEWALS = 4
"""A leader that has nothing to write renews its lease so many times in the life of it."""
CLOSE_S = 5.0
"""What waits is left behind, at the end, for a database that does not answer for so long."""
_DIALECT = Dialect(
    insert=INSERT,
    forget="DELETE FROM shunt_records WHERE generation_id = %s",
    keep=(
        "INSERT INTO shunt_kept VALUES (%s, %s, %s, %s) ON CONFLICT (generation_id) DO UPDATE SET"
        " (written_s, body, checksum) = (excluded.written_s, excluded.body, excluded.checksum)"
    ),
    drop_kept="DELETE FROM shunt_kept WHERE generation_id = %s",
    outlive="DELETE FROM shunt_kept WHERE written_s < %s",
    outlive_most=(
        "DELETE FROM shunt_kept WHERE written_s <="
        " (SELECT written_s FROM shunt_kept ORDER BY written_s DESC OFFSET %s LIMIT 1)"
    ),
    event=(
        "INSERT INTO shunt_events VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (number) DO UPDATE SET (time_unix_s, kind, node_id, pipeline_id,"
        " generation_id, attributes, plan, checksum) = (excluded.time_unix_s, excluded.kind,"
        " excluded.node_id, excluded.pipeline_id, excluded.generation_id, excluded.attributes,"
        " excluded.plan, excluded.checksum)"
    ),
    drop_events="DELETE FROM shunt_events WHERE number <= %s",
    save=(
        "INSERT INTO shunt_saved VALUES (%s, %s, %s) ON CONFLICT (key)"
        " DO UPDATE SET (value, checksum) = (excluded.value, excluded.checksum)"
    ),
    unsave="DELETE FROM shunt_saved WHERE key = %s",
    join=lambda name, number: ((JOIN, (name, number)),),
)


class PostgresJournal:
    """A Journal that takes writes once it leads. Who has lost the lease cannot write, and nothing
    that rests on what it holds leaves it: `settled` and `confirmed` ask the database, too."""

    def __init__(
        self,
        place: PostgresPlace,
        *,
        address: Callable[[], str] = str,
        commit_interval_s: float = 0.01,
        pending_limit: int = 10_000,
        events_kept: int = 10_000,
        lease_s: float = 2.0,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address` is told to who asks a standby where the leader is."""
        self._place = place
        self._address = address
        self._commit_interval_s = commit_interval_s
        self._pending_limit = pending_limit
        self._events_kept = events_kept
        self._lease_s = lease_s
        self._wall_clock = wall_clock
        self._clock = clock
        self._me = uuid.uuid4().hex
        self._statements: Statements
        self._writer: PostgresWriter | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def lead(self, following: Callable[[str], object] = bool) -> Recovered:
        """Follows whoever leads until it does itself; what the journal holds then. `following` is
        told where the leader is whenever another one is seen, empty where that is not known.

        Raises at the first look what is wrong with the database, FailedPrecondition, DataLoss or
        Unavailable; later it waits for one that is away.
        """
        candidate = Candidate(self._place, self._me, self._address(), self._lease_s, self._clock)
        leader: str | None = None
        looked, away = False, False
        try:
            while True:
                try:
                    seen, won = await asyncio.to_thread(candidate.look, self._wall_clock())
                    looked, away = True, False
                except psycopg.Error as error:
                    told = domain_error(error, self._place.name)
                    if not looked:
                        raise told from error
                    if not away:
                        _log.warning("the leader cannot be seen", extra={"why": told.message})
                    away = True
                    candidate.forget()
                else:
                    if won is not None:
                        break
                    if seen.address != leader:
                        leader = seen.address
                        following(leader)
                await asyncio.sleep(self._lease_s / LOOKS)
        except BaseException:
            candidate.forget()
            raise
        self._statements = Statements(
            _DIALECT,
            last_number=won.last_number,
            events_kept=self._events_kept,
            wall_clock=self._wall_clock,
        )
        self._writer = PostgresWriter(
            won.session,
            self._place.name,
            interval_s=self._commit_interval_s,
            pending_limit=self._pending_limit,
            reaches=lambda: self._statements.last_number,
            clock=self._clock,
        )
        self._renewing = asyncio.create_task(self._renew())
        return won.recovered

    async def superseded(self) -> Superseded:
        """Returns when another controller leads: this process must end."""
        return await asyncio.shield(self._leading.superseded)

    @property
    def full(self) -> bool:
        return self._leading.full

    @property
    def room(self) -> JournalRoom:
        writer = self._leading
        if writer.exhausted:
            return JournalRoom.NONE
        silent_s = self._clock() - writer.confirmed_s
        return JournalRoom.ENOUGH if silent_s < self._lease_s else JournalRoom.AWAY

    def tend(self) -> None:
        """The database does that by itself."""

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Future[None]:
        writer = self._leading
        statements = [statement for item in items for statement in self._statements.of(item)]
        return asyncio.shield(writer.write(statements, sync=fsync))

    async def kept(self, generation_id: str) -> GenerationView | None:
        return await asyncio.shield(self._leading.kept(generation_id))

    async def settled(self) -> None:
        await self.write(())

    async def confirmed(self) -> None:
        await self.write((), fsync=True)

    async def recover(self) -> Recovered:
        return await self._leading.recover(self._wall_clock())

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        if self._writer is not None:
            self._writer.stop()
            if not await asyncio.to_thread(self._writer.join, CLOSE_S):
                _log.error("the database did not take what waited for it")

    @property
    def _leading(self) -> PostgresWriter:
        if self._writer is None:
            raise Unavailable("this controller does not lead", field="journal")
        return self._writer

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            with contextlib.suppress(ShuntError):
                await self.confirmed()
