from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from services.common.errors import DataLoss
from services.common.generation import TokenSpan
from services.controller.core.ledger.records import IdsAppended
from services.controller.journal import schema2, schema3, schema4
from services.controller.journal.schema import EVENTS, INSERT, KEPT, RECORDS, VERSION
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.journal import schema2_file

FRAME_BYTES = 4096 + 24
KILLED = """
import os, pathlib, signal, sys
from services.controller.journal import schema, schema2
from services.controller.journal.writer import open_connection

rows, left = schema2._row, int(sys.argv[2])

def row(found):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows(found)

schema2._row = row
path = pathlib.Path(sys.argv[1])
connection = open_connection(path)
connection.execute("PRAGMA cache_size=10")  # what is not committed lies in the log early
schema.prepare(connection, path)
print("done")
os.kill(os.getpid(), signal.SIGKILL)
"""
"""Carries a file over, and is killed at a row or when all is done."""


def _records(count: int, ids: int = 100) -> tuple[IdsAppended, ...]:
    return tuple(
        IdsAppended(f"g{number % 7}", TokenSpan(0, number, (number,) * ids))
        for number in range(count)
    )


async def _read(path: Path) -> tuple[object, ...]:
    journal = SqliteJournal(path)
    try:
        return (await journal.recover()).records
    finally:
        await journal.close()


def _version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return found


@pytest.mark.parametrize("row", [1, 700, 2000, 2001])
async def test_killed_while_it_carries_over_it_begins_again_and_loses_nothing(
    tmp_path: Path, row: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, records = tmp_path / "j", _records(2000)
    schema2_file.make(path, records)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, str(path), str(row)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == ("done\n" if row > len(records) else "")
    if row == 2000:
        assert path.with_name("j-wal").stat().st_size > 50 * FRAME_BYTES
    with caplog.at_level(logging.ERROR):
        assert await _read(path) == records
    assert not caplog.records
    assert _version(path) == VERSION


async def test_wherever_the_log_breaks_off_a_file_has_all_in_one_schema(tmp_path: Path) -> None:
    path, records = tmp_path / "j", _records(60)
    schema2_file.make(path, records)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        assert schema2.carry_over(connection, RECORDS, INSERT) == len(records)
        assert schema3.carry_over(connection, EVENTS) == 0
        schema4.carry_over(connection, KEPT)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        log, base = path.with_name("j-wal").read_bytes(), path.read_bytes()
    found = set()
    for number, cut in enumerate((*range(0, len(log), FRAME_BYTES // 2), len(log))):
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(base)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:cut])
        shutil.copy(copy, tmp_path / "seen")
        shutil.copy(f"{copy}-wal", tmp_path / "seen-wal")
        found.add(_version(tmp_path / "seen"))
        assert await _read(copy) == records
    assert found == {schema2.VERSION, VERSION}


async def test_rows_carried_over_lie_in_the_room_of_the_old_ones(tmp_path: Path) -> None:
    path, records = tmp_path / "j", _records(3000)
    schema2_file.make(path, records)
    before_bytes = path.stat().st_size
    journal = SqliteJournal(path)
    assert path.with_name("j-wal").stat().st_size < before_bytes // 10
    await journal.close()
    assert path.stat().st_size < 1.05 * before_bytes
    assert await _read(path) == records


@pytest.mark.parametrize("version", [1, 6, 99])
async def test_a_schema_that_is_not_known_is_told_by_file_and_nothing_is_changed(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "j"
    schema2_file.make(path, script=f"{schema2_file.SCRIPT}PRAGMA user_version = {version};")
    said = f"{path} has schema {version}, this program reads 2 to 5"
    with pytest.raises(DataLoss, match=said) as refused:
        SqliteJournal(path)
    assert "move j* away" in refused.value.message
    assert _version(path) == version
    assert not path.with_name("j-open").exists()
