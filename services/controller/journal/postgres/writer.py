"""The writing thread of a journal in PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import psycopg

from services.common.errors import ShuntError, Superseded
from services.common.exchange import GenerationView
from services.controller.journal.groups import Group, GroupWriter, fail, give
from services.controller.journal.journal import Recovered
from services.controller.journal.postgres.failures import domain_error, lacks_room
from services.controller.journal.postgres.session import Session

_log = logging.getLogger(__name__)


class PostgresWriter(GroupWriter):
    """All groups are durable when they are answered: a database that is killed loses none.

    The thread alone uses the session, so that nobody but another controller ends its epoch.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        interval_s: float,
        pending_limit: int,
        reaches: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        """`name` is the database's, as it may be told; `reaches`, the highest number given."""
        self._session = session
        self._name = name
        self._reaches = reaches
        self._clock = clock
        self.confirmed_s = clock()
        """When the database last said that this session may write."""
        self.superseded: asyncio.Future[Superseded] = asyncio.get_running_loop().create_future()
        super().__init__(interval_s=interval_s, pending_limit=pending_limit)

    def recover(self, now_s: float) -> asyncio.Future[Recovered]:
        """What the journal holds behind all that was written; writes are taken again when it is
        there. Fails with a ShuntError, or for a defect."""
        self._flush()
        found: asyncio.Future[Recovered] = self._loop.create_future()
        self._queue.put(lambda: self._recover(found, now_s))
        return found

    def kept(self, generation_id: str) -> asyncio.Future[GenerationView | None]:
        """What is kept of a generation, behind all that was written; fails with a ShuntError."""

        def read() -> GenerationView | None:
            try:
                return self._session.kept(generation_id)
            except psycopg.Error as error:
                raise domain_error(error, self._name) from error

        return self.ask(read)

    def join(self, timeout_s: float | None = None) -> bool:
        ended = super().join(timeout_s)
        if ended:
            try:
                self._session.close()
            except psycopg.Error as error:
                _log.info("the lease was not given back", extra={"why": str(error)})
        return ended

    def _commit(self, group: Group) -> Exception | None:
        began_s = self._clock()
        try:
            self._session.commit(group.statements, self._reaches())
        except (psycopg.Error, ShuntError) as error:
            return self._failure(error)
        except Exception as defect:  # the thread must live to say so
            return defect
        self.exhausted = False
        self.confirmed_s = began_s
        return None

    def _recover(self, found: asyncio.Future[Recovered], now_s: float) -> None:
        began_s = self._clock()
        try:
            recovered = self._session.begin_again(now_s)
        except (psycopg.Error, ShuntError) as error:
            self._tell(fail, found, self._failure(error))
        except Exception as defect:
            self._tell(fail, found, defect)
        else:
            self._failed = None
            self.exhausted = False
            self.confirmed_s = began_s
            self._tell(give, found, recovered)

    def _failure(self, error: psycopg.Error | ShuntError) -> ShuntError:
        if isinstance(error, ShuntError):
            told = error
        else:
            self.exhausted = lacks_room(error)
            told = domain_error(error, self._name)
        if isinstance(told, Superseded):
            self._tell(give, self.superseded, told)
        else:
            _log.error("journal write failed", extra={"error": told.message})
        return told
