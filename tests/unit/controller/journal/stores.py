"""What every store of the journal is tested on, each opened in its own way."""

from __future__ import annotations

import os
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg

from services.controller.journal.journal import Journal, Recovered
from services.controller.journal.place import PostgresPlace, place_of
from services.controller.journal.postgres.journal import PostgresJournal
from services.controller.journal.rows import checksum
from services.controller.journal.sqlite import SqliteJournal

_LOOP = """
    for number in range(10**9):
        span = TokenSpan(0, number, (number,) * 50)
        await journal.write((IdsAppended("g", span),), fsync=number % 7 == 0)
        print(number, flush=True)

asyncio.run(main())
"""
_IMPORTS = """
import asyncio, pathlib, sys
from services.common.generation import TokenSpan
from services.controller.core.ledger.records import IdsAppended
from services.controller.journal.place import place_of
"""


class StoreUnderTest(ABC):
    """One journal that is opened again and again."""

    @asynccontextmanager
    async def open(self, **more: Any) -> AsyncIterator[Journal]:
        journal = await self._opened(**more)
        try:
            yield journal
        finally:
            await journal.close()

    async def recovered(self) -> Recovered:
        async with self.open() as journal:
            return await journal.recover()

    @property
    @abstractmethod
    def writing(self) -> tuple[str, ...]:
        """Arguments of Python for a process that writes for ever and prints what was answered."""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    @abstractmethod
    async def _opened(self, **more: Any) -> Journal: ...

    @abstractmethod
    def alter(self, *, with_checksum: bool, **columns: int | bytes) -> None:
        """Changes rows of records behind the journal's back, and their checksums."""


class SqliteStore(StoreUnderTest):
    def __init__(self, path: Path) -> None:
        self._path = path

    async def _opened(self, **more: Any) -> Journal:
        return SqliteJournal(self._path, commit_interval_s=0.0, **more)

    @property
    def writing(self) -> tuple[str, ...]:
        source = (
            "from services.controller.journal.sqlite import SqliteJournal\n"
            f"{_IMPORTS}\nasync def main():\n"
            "    journal = SqliteJournal(pathlib.Path(sys.argv[1]), commit_interval_s=0.0)\n"
            f"{_LOOP}"
        )
        return "-c", source, str(self._path)

    def alter(self, *, with_checksum: bool, **columns: int | bytes) -> None:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.create_function("row_checksum", -1, checksum)
            for name, value in columns.items():
                connection.execute(f"UPDATE records SET {name} = ?", (value,))
            if with_checksum:
                connection.execute(
                    "UPDATE records"
                    " SET checksum = row_checksum(number, written_s, generation_id, kind, body)"
                )


class PostgresStore(StoreUnderTest):
    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def place(self) -> PostgresPlace:
        found = place_of(self.uri, Path())
        assert isinstance(found, PostgresPlace)
        return found

    async def _opened(self, **more: Any) -> Journal:
        journal = PostgresJournal(self.place, commit_interval_s=0.0, lease_s=0.5, **more)
        try:
            await journal.lead()
        except BaseException:
            await journal.close()
            raise
        return journal

    @property
    def writing(self) -> tuple[str, ...]:
        source = (
            "from services.controller.journal.postgres.journal import PostgresJournal\n"
            f"{_IMPORTS}\nasync def main():\n"
            "    place = place_of(sys.argv[1], pathlib.Path())\n"
            "    journal = PostgresJournal(place, commit_interval_s=0.0)\n"
            "    await journal.lead()\n"
            f"{_LOOP}"
        )
        return "-c", source, self.uri

    def alter(self, *, with_checksum: bool, **columns: int | bytes) -> None:
        with psycopg.connect(self.uri, autocommit=True) as connection:
            for name, value in columns.items():
                change: Any = f"UPDATE shunt_records SET {name} = %s"
                connection.execute(change, (value,))
            if with_checksum:
                read = connection.execute(
                    "SELECT number, written_s, generation_id, kind, body FROM shunt_records",
                    binary=True,
                )
                for row in read.fetchall():
                    connection.execute(
                        "UPDATE shunt_records SET checksum = %s WHERE number = %s",
                        (checksum(*row), row[0]),
                    )
