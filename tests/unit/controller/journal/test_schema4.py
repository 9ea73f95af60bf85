from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from services.controller.journal.schema import VERSION
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.journal.samples import RECORDS


async def test_a_file_of_schema_4_gets_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = SqliteJournal(path, commit_interval_s=0.0)
    await journal.write(RECORDS)
    await journal.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE kept; PRAGMA user_version = 4;")
    for _ in range(2):
        journal = SqliteJournal(path, commit_interval_s=0.0)
        try:
            assert (await journal.recover()).records == RECORDS
            assert await journal.kept("g") is None
        finally:
            await journal.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
