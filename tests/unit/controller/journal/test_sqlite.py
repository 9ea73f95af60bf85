from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.errors import DataLoss, ResourceExhausted
from services.common.generation import (
    TokenSpan,
)
from services.controller.core.ledger.records import (
    Granted,
    IdsAppended,
    Record,
    Sealed,
)
from services.controller.journal.journal import Recovered
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.journal.samples import RECORDS, REQUEST

FRAME_BYTES = 4096 + 24

SOURCE = """
import asyncio, pathlib, sys
from services.common.generation import TokenSpan
from services.controller.journal.sqlite import SqliteJournal
from services.controller.core.ledger.records import IdsAppended

async def main():
    journal = SqliteJournal(pathlib.Path(sys.argv[1]), commit_interval_s=0.0)
    for number in range(10**9):
        span = TokenSpan(0, number, (number,) * 50)
        await journal.write((IdsAppended("g", span),), fsync=number % 7 == 0)
        print(number, flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def _open(path: Path, **more: float) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path, commit_interval_s=0.0, **more)  # type: ignore[arg-type]
    try:
        yield journal
    finally:
        await journal.close()


async def _recovered(path: Path) -> Recovered:
    async with _open(path) as journal:
        return await journal.recover()


def _appended(number: int) -> IdsAppended:
    return IdsAppended("g", TokenSpan(0, number, (number,) * 200))


async def test_a_log_cut_while_epochs_end_still_holds_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written: list[Record] = [RECORDS[0]]
    for epoch in range(2, 8):
        spans = [TokenSpan(0, 10 * epoch + n, (n,) * 300) for n in range(5)]
        written += [IdsAppended("g", span) for span in spans]
        written += [Sealed("g", epoch), Granted("g", epoch, "i", "f", "p", REQUEST, ())]
    async with _open(path) as journal:
        for record in written:
            await journal.write((record,))
        log, base = path.with_name("j-wal").read_bytes(), path.read_bytes()
    for number, cut in enumerate(range(0, len(log) + 1, FRAME_BYTES // 2)):
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(base)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:cut])
        records = (await _recovered(copy)).records
        assert _flat(records) in {_flat(written[:end]) for end in range(len(written) + 1)}


def _flat(records: Sequence[Record]) -> tuple[object, ...]:
    """The same for records that say the same."""
    flat: list[object] = []
    for record in records:
        flat += record.span.ids if isinstance(record, IdsAppended) else [type(record).__name__]
    return tuple(flat)


async def test_any_end_of_the_log_file_recovers_to_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written = [_appended(number) for number in range(60)]
    async with _open(path) as journal:
        for record in written:
            await journal.write((record,), fsync=record.span.start % 5 == 0)
        log = path.with_name("j-wal").read_bytes()
        base = path.read_bytes()
    frames = range(32, len(log) + 1, FRAME_BYTES)
    cuts = {0, 31, len(log)} | {cut + shift for cut in frames for shift in (-1, 0, 1, 777)}
    lengths = []
    for number, cut in enumerate(sorted(cut for cut in cuts if cut <= len(log))):
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(base)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:cut])
        records = list((await _recovered(copy)).records)
        assert records == written[: len(records)]
        lengths.append(len(records))
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert set(lengths) == set(range(61))


async def test_flipped_bits_behind_a_commit_never_add_to_the_prefix(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written = [_appended(number) for number in range(20)]
    async with _open(path) as journal:
        for record in written:
            await journal.write((record,))
        log = bytearray(path.with_name("j-wal").read_bytes())
        base = path.read_bytes()
    draw = random.Random(1)
    for number in range(40):
        spoilt = bytearray(log)
        spoilt[draw.randrange(len(log))] ^= 1 << draw.randrange(8)
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(base)
        copy.with_name(f"{copy.name}-wal").write_bytes(spoilt)
        records = list((await _recovered(copy)).records)
        assert records == written[: len(records)]


async def test_a_full_disk_is_an_explicit_error_and_leaves_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "j"
    source = SOURCE.replace("async def main():", "import resource\nasync def main():").replace(
        "    for number in range(10**9):",
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "    for number in range(10**9):",
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", source, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert f"ResourceExhausted: {path} cannot be written" in done.stderr
    acknowledged = int(done.stdout.split()[-1])
    records = (await _recovered(path)).records
    starts = [record.span.start for record in records if isinstance(record, IdsAppended)]
    assert starts == list(range(len(starts)))
    assert len(starts) == acknowledged + 1


async def test_a_failed_journal_takes_writes_again_once_it_was_read(tmp_path: Path) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.write((_appended(0),))
        connection = journal._writer._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ResourceExhausted):
            await journal.write([_appended(n) for n in range(1, 500)], fsync=True)
        with pytest.raises(ResourceExhausted):
            await journal.settled()
        connection.execute("PRAGMA max_page_count=100000")
        with pytest.raises(ResourceExhausted):
            await journal.write((_appended(1),))
        assert (await journal.recover()).records == (_appended(0),)
        await journal.settled()
        await journal.write((_appended(1),))
        assert (await journal.recover()).records == (_appended(0), _appended(1))


async def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DataLoss):
        SqliteJournal(tmp_path / "j")


async def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "j")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DataLoss, match=f"{tmp_path / 'j'} has schema 99"):
        SqliteJournal(tmp_path / "j")
