"""A journal whose file or log was damaged, or is not all there."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import DataLoss, ShuntError
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.ledger.records import Ended, HeadBound, IdsAppended, Record, Sealed
from services.controller.journal.journal import LoggedEvent, Recovered, Saved
from services.controller.journal.log import log_of
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.journal import schema2_file

REQUEST = GenerationRequest("g", ModelRef("m", "d"), tuple(range(900)), Sampling(max_tokens=7))
FLIPS = 400


def _records() -> list[Record]:
    records: list[Record] = []
    for name in ("a", "b", "c", "d"):
        records.append(HeadBound(name, "incarnation", "formation", "pipeline", REQUEST))
        records += [IdsAppended(name, TokenSpan(0, 40 * n, tuple(range(40)))) for n in range(20)]
        records += [Sealed(name, 1), Ended(name, None, CancelReason.CLIENT, None)]
    return records


async def _write(path: Path) -> None:
    journal = SqliteJournal(path, commit_interval_s=0.0)
    for record in _records():
        await journal.write((record,))
    events = [
        LoggedEvent(n, 0.5, "kind", "node", "pipeline", "g", {"a": "b"}, n) for n in range(50)
    ]
    await journal.write((*events, Saved("key", "value" * 500)), fsync=True)
    await journal.close()


async def _read(path: Path) -> Recovered:
    journal = SqliteJournal(path)
    try:
        return await journal.recover()
    finally:
        await journal.close()


async def _said(path: Path) -> Recovered | ShuntError:
    try:
        return await _read(path)
    except ShuntError as error:
        return error


@pytest.mark.parametrize("schema", [2, 4])
async def test_a_flipped_bit_anywhere_changes_nothing_or_is_told_by_file(
    tmp_path: Path, schema: int
) -> None:
    path = tmp_path / "j"
    if schema == 2:
        schema2_file.make(path, _records(), schema2_file.SCRIPT)
    else:
        await _write(path)
    content = path.read_bytes()
    whole = await _read(path)
    draw, found = random.Random(5), 0
    for number in range(FLIPS):
        spoilt = bytearray(content)
        spoilt[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(spoilt)
        said = await _said(copy)
        if isinstance(said, Recovered):
            assert said == replace(whole, ages_s=said.ages_s)
            continue
        assert isinstance(said, DataLoss), said
        assert str(copy) in said.message
        assert f"move {copy.name}* away" in said.message
        found += 1
    assert found > FLIPS // 4


@pytest.mark.parametrize("table", ["records", "events", "saved"])
async def test_a_column_that_changed_is_told_by_its_row(tmp_path: Path, table: str) -> None:
    path = tmp_path / "j"
    await _write(path)
    connection = sqlite3.connect(path)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    for column in columns:
        copy = tmp_path / f"{table}-{column}"
        shutil.copy(path, copy)
        spoilt = sqlite3.connect(copy)
        where = f"rowid = (SELECT max(rowid) FROM {table})"
        spoilt.execute(f"UPDATE {table} SET {column} = 4242 WHERE {where}")
        spoilt.commit()
        spoilt.close()
        with pytest.raises(DataLoss, match=f"of table {table} does not match"):
            await _read(copy)
    connection.close()


async def test_damage_is_not_joined_into_a_row_that_looks_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = SqliteJournal(path, commit_interval_s=0.0)
    await journal.write(_records()[:5], fsync=True)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("UPDATE records SET body = zeroblob(9) WHERE number = 3")
    with pytest.raises(ShuntError):
        await journal.write((Sealed("a", 1),))
    other.close()
    with pytest.raises(DataLoss, match="row 3 of table records"):
        await journal.recover()
    await journal.close()


def _copy(path: Path, copy: Path, *endings: str) -> None:
    for ending in endings:
        shutil.copy(f"{path}{ending}", f"{copy}{ending}")


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """What a killed process leaves: the file, its log, and the mark that it was open."""
    path = tmp_path / "j"
    journal = SqliteJournal(path, commit_interval_s=0.0)
    for number in range(20):
        await journal.write((IdsAppended("g", TokenSpan(0, number, (number,))),))
    _copy(path, tmp_path / "killed", "", "-wal", "-open")
    await journal.close()
    return tmp_path / "killed"


def _flip(path: Path, place: int) -> None:
    spoilt = bytearray(path.read_bytes())
    spoilt[place] ^= 4
    path.write_bytes(spoilt)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_log_that_is_whole_is_no_word_worth(
    killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len((await _read(killed)).records) == 20
    assert len((await _read(killed)).records) == 20
    assert _errors(caplog) == []


async def test_a_log_that_is_gone_is_told_once(
    killed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log_of(killed).unlink()
    await _read(killed)
    assert _errors(caplog) == ["the journal's log is gone, and what it held with it"]
    await _read(killed)
    assert len(_errors(caplog)) == 1


@pytest.mark.parametrize("place", [3, 10, 17, 500, 20_000, -9000])
async def test_a_log_that_breaks_off_is_told(
    killed: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    _flip(log_of(killed), place)
    assert len((await _read(killed)).records) < 20
    assert len(_errors(caplog)) == 1
    assert "damaged" in _errors(caplog)[0]


async def test_a_journal_read_again_keeps_the_ages_of_what_it_holds(tmp_path: Path) -> None:
    now = [1000.0]
    request = GenerationRequest("old", ModelRef("m", "d"), (1,), Sampling(max_tokens=1))
    journal = SqliteJournal(tmp_path / "j", wall_clock=lambda: now[0])
    ended = IdsAppended("old", TokenSpan(0, 0, (5,), (), FinishReason.LENGTH))
    await journal.write((HeadBound("old", "i", "f", "p", request), ended, Sealed("old", 1)))
    now[0] += 9.0
    young = GenerationRequest("young", ModelRef("m", "d"), (1,), Sampling(max_tokens=1))
    await journal.write((HeadBound("young", "i", "f", "p", young),))
    await journal.write((IdsAppended("young", TokenSpan(0, 0, (5,), (), FinishReason.LENGTH)),))
    now[0] += 2.0
    recovered = await journal.recover()
    await journal.close()
    assert recovered.ages_s == (11.0, 11.0, 11.0, 2.0, 2.0)
    settings = LedgerSettings(retention_s=10.0)
    ledger = Ledger.recover(settings, recovered.records, 50.0, recovered.ages_s)
    assert [record.generation_id for record in ledger.tick(50.0).records] == ["old"]


async def test_a_clock_that_was_set_back_makes_nothing_older(tmp_path: Path) -> None:
    now = [1000.0]
    journal = SqliteJournal(tmp_path / "j", wall_clock=lambda: now[0])
    await journal.write((Ended("g", None, CancelReason.CLIENT, None),))
    now[0] = 1.0
    assert (await journal.recover()).ages_s == (0.0,)
    await journal.close()
