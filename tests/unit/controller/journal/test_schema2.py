from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DataLoss
from services.common.generation import (
    PLAIN,
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    ModelRef,
    PriorityClass,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.controller.core.ledger.records import (
    Ended,
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Record,
    Sealed,
)
from services.controller.journal.journal import LoggedEvent, Recovered
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.journal import schema2_file
from tests.unit.controller.journal.samples import records

REQUEST = GenerationRequest(
    "g",
    ModelRef("tiny", "ab"),
    (1, 2, 3),
    Sampling(
        max_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={5: -1.0},
        top_logprobs=2,
        min_tokens=1,
        stop_token_ids=(9,),
        ignore_eos=True,
        eos_token_ids=(2,),
        seed=2**63,
    ),
    choices=2,
    stop_strings=("\n\n",),
    kind=GenerationKind.COMPLETION,
    created_unix_s=1,
    include_usage=True,
    numerics_class="exact",
    ask_digest="d",
)
SMALL = GenerationRequest("k", ModelRef("m", ""), (0,), Sampling(max_tokens=1))


def _part(choice: int, start: int, end: int, reason: FinishReason | None = None) -> IdsAppended:
    ids = tuple(range(start, end))
    said = tuple(TokenLogprob(-0.5 * n, ((n, -0.5),) * (n % 3)) for n in ids)
    return IdsAppended("g", TokenSpan(choice, start, ids, said, reason))


BASE = (TokenSpan(0, 4, (2**32 - 1,)), TokenSpan(1, 1, (), (), FinishReason.STOP))
LEFT: tuple[Record, ...] = (
    HeadBound("g", "i", "f", "p", REQUEST),
    _part(0, 0, 4),
    _part(1, 0, 1),
    Granted("g", 2, "i2", "f2", "p2", REQUEST, BASE),
    _part(0, 5, 6, FinishReason.LENGTH),
    Sealed("g", 2),
    Ended("g", 1, CancelReason.STOP, 3),
    Ended("h", None, CancelReason.CLIENT, None),
    HeadBound("k", "i", "f", "p", SMALL),
    IdsAppended("k", TokenSpan(0, 0, (7,), (), FinishReason.CANCELLED)),
)
"""What the file of schema2.sql holds."""


async def _recovered(path: Path) -> Recovered:
    journal = SqliteJournal(path, wall_clock=lambda: schema2_file.WRITTEN_S + 5)
    try:
        return await journal.recover()
    finally:
        await journal.close()


@pytest.mark.parametrize("names", [("Bound", "Appended"), ("HeadBound", "IdsAppended")])
async def test_all_that_the_last_program_of_schema_2_left_is_read(
    tmp_path: Path, names: Sequence[str]
) -> None:
    script = schema2_file.SCRIPT.replace("'Bound'", f"'{names[0]}'")
    schema2_file.make(tmp_path / "j", script=script.replace("'Appended'", f"'{names[1]}'"))
    if names[0] != "Bound":
        _sum_again(tmp_path / "j")
    first, again = await _recovered(tmp_path / "j"), await _recovered(tmp_path / "j")
    assert first.records == LEFT
    assert first.events == (LoggedEvent(3, 0.5, "node_lost", "n", "p", "g", {"a": "ü"}),)
    assert first.saved == {"cluster": "{}"}
    assert set(first.ages_s) == {5.0}
    assert again == first


def _sum_again(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM records").fetchall()
        connection.execute("DELETE FROM records")
        schema2_file.insert(connection, [row[:-1] for row in rows])


def _span_then(span: TokenSpan) -> TokenSpan:
    stuck = span.finish_reason is FinishReason.GRAMMAR
    reason = FinishReason.STOP if stuck else span.finish_reason
    return replace(span, cached_tokens=0, finish_reason=reason)


def _was_known(record: Record) -> bool:
    """Programs of schema 2 wrote such records."""
    return not isinstance(record, Inexact)


def _then(record: Record) -> Record:
    """Without what programs of schema 2 did not know."""
    if isinstance(record, HeadBound | Granted):
        sampling = replace(
            record.request.sampling,
            grammar=None,
            allowed_token_ids=(),
            given_ids=(),
            echo=False,
            kv_int8=False,
        )
        request = replace(
            record.request,
            cache_salt="",
            sampling=sampling,
            tenant="",
            priority=PriorityClass.STANDARD,
            tenant_weight=1,
            response=None,
            parts=PLAIN,
        )
        record = replace(record, request=request)
    if isinstance(record, Granted):
        spans = tuple(map(_span_then, record.spans))
        record = replace(record, spans=spans, numerics_class="")
    if isinstance(record, IdsAppended):
        record = replace(record, span=_span_then(record.span))
    return record


@settings(max_examples=40, deadline=None)
@given(st.lists(records(32).filter(_was_known).map(_then), max_size=6))
def test_every_record_of_schema_2_is_carried_over_as_it_was(written: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        schema2_file.make(Path(folder) / "j", written)
        assert asyncio.run(_recovered(Path(folder) / "j")).records == tuple(written)


async def test_a_journal_that_was_carried_over_goes_on_where_it_was(tmp_path: Path) -> None:
    schema2_file.make(tmp_path / "j", script=schema2_file.SCRIPT)
    journal = SqliteJournal(tmp_path / "j", commit_interval_s=0.0)
    await journal.write((IdsAppended("k", TokenSpan(0, 1, (8,))),))
    await journal.write((Sealed("k", 1),))
    said = (await journal.recover()).records
    await journal.close()
    joined = IdsAppended("k", TokenSpan(0, 0, (7, 8), (), FinishReason.CANCELLED))
    assert said == (*LEFT[:-1], joined, Sealed("k", 1))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET body = x'ff' WHERE kind = 'Granted'",
        "UPDATE records SET reason = 'stop' WHERE reason = 'client'",
        "UPDATE records SET kind = 'Strange' WHERE number = 1",
        "UPDATE records SET generation_id = CAST(x'ff' AS TEXT) WHERE number = 1",
        "UPDATE records SET number = -7 WHERE number = 1",
        "DROP INDEX records_by_generation",
    ],
)
async def test_damage_is_told_by_file_and_the_file_left_as_it_was(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "j"
    schema2_file.make(path, script=schema2_file.SCRIPT + damage)
    shutil.copy(path, tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(DataLoss, match=f"{path} is damaged"):
            SqliteJournal(path)
    assert _dump(path) == _dump(tmp_path / "copy")


def _dump(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        tables = connection.execute("SELECT sql FROM sqlite_schema").fetchall()
        rows = connection.execute("SELECT * FROM records").fetchall()
        return [connection.execute("PRAGMA user_version").fetchone(), tables, rows]


@pytest.mark.parametrize(
    ("kind", "reason", "body", "said"),
    [
        ("Ended", "boredom", None, "boredom is no cancel reason"),
        ("Appended", None, bytes.fromhex("32022804"), "4 is no finish reason"),
        ("Bound", None, bytes.fromhex("2a023803"), "3 is no generation kind"),
    ],
)
async def test_a_value_that_schema_2_never_had_is_damage(
    tmp_path: Path, kind: str, reason: str | None, body: bytes | None, said: str
) -> None:
    schema2_file.make(tmp_path / "j")
    with closing(sqlite3.connect(tmp_path / "j")) as connection:
        columns = (1, 0.5, "g", kind, 1, "i", "f", "p", None, reason, None, body)
        schema2_file.insert(connection, [columns])
    with pytest.raises(DataLoss, match=said):
        SqliteJournal(tmp_path / "j")
