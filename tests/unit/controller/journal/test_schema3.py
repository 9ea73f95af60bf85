from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.common.errors import DataLoss
from services.common.generation import (
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.records import HeadBound, IdsAppended
from services.controller.journal.journal import LoggedEvent, Recovered
from services.controller.journal.schema import VERSION
from services.controller.journal.sqlite import SqliteJournal

SCRIPT = (Path(__file__).parent / "schema3.sql").read_text()
LOST = LoggedEvent(3, 0.5, "node_lost", "n", "p", "g", {"a": "ü"})
READY = LoggedEvent(4, 1.5, "plan_ready", "", "", "", {"plan": "2"})


def _make(path: Path, script: str = SCRIPT) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


async def _recovered(path: Path, *more: LoggedEvent) -> Recovered:
    journal = SqliteJournal(path, commit_interval_s=0.0)
    try:
        if more:
            await journal.write(more)
        return await journal.recover()
    finally:
        await journal.close()


async def test_events_of_schema_3_belong_to_no_plan_and_newer_ones_to_theirs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j"
    _make(path)
    first = await _recovered(path)
    assert first.events == (LOST, READY)
    assert [event.plan for event in first.events] == [0, 0]
    request = GenerationRequest("k", ModelRef("m", ""), (0,), Sampling(max_tokens=1))
    ended = TokenSpan(0, 0, (7,), (), FinishReason.CANCELLED)
    assert first.records == (HeadBound("k", "i", "f", "p", request), IdsAppended("k", ended))
    assert first.saved == {"cluster": "{}"}
    newer = LoggedEvent(5, 2.5, "node_lost", "m", plan=7)
    assert (await _recovered(path, newer)).events == (LOST, READY, newer)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)


async def test_a_damaged_event_is_told_by_file_and_the_file_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "j"
    _make(path, SCRIPT + "UPDATE events SET kind = 'x' WHERE number = 3;")
    with pytest.raises(DataLoss, match=f"{path} is damaged: row 3 of table events"):
        SqliteJournal(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
        assert "plan" not in columns
