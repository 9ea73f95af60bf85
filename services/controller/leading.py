"""From a process that starts to one that leads: the journal is opened, and its turn waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from services.common.channels import address_of
from services.common.server import Signals
from services.controller.journal.journal import Recovered
from services.controller.journal.place import PostgresPlace, SqlitePlace
from services.controller.journal.sqlite import SqliteJournal
from services.controller.settings import ControllerSettings
from services.controller.standby import Standby

if TYPE_CHECKING:
    from services.controller.journal.postgres.journal import PostgresJournal

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Stopped(Exception):
    """The process was told to stop before it led."""


def open_sqlite(chosen: ControllerSettings, place: SqlitePlace) -> SqliteJournal:
    """Of this process alone, which holds the locks."""
    return SqliteJournal(
        place.path,
        commit_interval_s=chosen.commit_interval_s,
        pending_limit=chosen.journal_pending_limit,
        events_kept=chosen.events_kept,
        sync_always=chosen.sync_always,
        reserve_bytes=chosen.journal_reserve_bytes,
    )


def open_postgres(
    chosen: ControllerSettings, place: PostgresPlace, address: Callable[[], str]
) -> PostgresJournal:
    """Not leading yet; `address` is where this controller is found."""
    # here, so that only who keeps its journal there needs psycopg
    from services.controller.journal.postgres.journal import PostgresJournal

    return PostgresJournal(
        place,
        address=address,
        commit_interval_s=chosen.commit_interval_s,
        pending_limit=chosen.journal_pending_limit,
        events_kept=chosen.events_kept,
        lease_s=chosen.lease_s,
    )


async def lead(
    chosen: ControllerSettings, journal: PostgresJournal, standby: Standby, signals: Signals
) -> Recovered:
    """Serves as a standby until it is this controller's turn. Raises Stopped, and what
    PostgresJournal.lead raises."""

    def following(leader: str) -> None:
        standby.leader = leader
        if leader:
            _log.info("standing by", extra={"leader": leader})

    try:
        recovered = await unless_stopped(journal.lead(following), signals)
    finally:
        await standby.stop()
    _log.info("leading", extra={"records": len(recovered.records)})
    return recovered


async def unless_stopped(waiting: Coroutine[None, None, T], signals: Signals) -> T:
    """What comes of it; raises Stopped when the signal comes first."""
    work, told = asyncio.create_task(waiting), asyncio.create_task(signals.next())
    try:
        await asyncio.wait((work, told), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise Stopped
    finally:
        for task in (work, told):
            task.cancel()
        await asyncio.gather(work, told, return_exceptions=True)


def own_address(chosen: ControllerSettings, port: int) -> str:
    """Where this controller is found, of all that may lead."""
    if chosen.advertise_address:
        return chosen.advertise_address.split(",")[0]
    return address_of(chosen.host, port)


def lock_files(chosen: ControllerSettings) -> list[Path]:
    """What is locked so that no second controller has the directory, or the file."""
    place, files = chosen.journal_place, [chosen.data_dir / "controller.lock"]
    if isinstance(place, SqlitePlace) and place.path.parent != chosen.data_dir:
        files.append(place.path.with_name(f"{place.path.name}-lock"))
    return files
