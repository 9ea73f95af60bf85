from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import DataLoss, ResourceExhausted
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
    Sealed,
)
from services.controller.journal.journal import LoggedEvent, Recovered, Saved
from services.controller.journal.rows import checksum
from services.controller.journal.sqlite import SqliteJournal

FRAME_BYTES = 4096 + 24
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
)
SPAN = TokenSpan(1, 4, (7, 2**32 - 1), (TokenLogprob(-0.5, ((7, -0.5),)), TokenLogprob(-1.0)))
RECORDS: tuple[Record, ...] = (
    HeadBound("g", "i", "f", "p", REQUEST),
    IdsAppended("g", SPAN),
    Granted("g", 2, "i2", "f2", "p2", REQUEST, (TokenSpan(0, 0, (), (), FinishReason.STOP), SPAN)),
    Sealed("g", 2),
    Ended("g", 1, CancelReason.STOP, 3),
    Ended("g", None, CancelReason.CLIENT, None),
)

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


def _write_until_killed(path: Path, kill_after: int) -> int:
    """Kills a writing process in mid-write; returns the last number it got an answer for."""
    acknowledged = -1
    with subprocess.Popen(
        [sys.executable, "-c", SOURCE, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == kill_after:
                process.send_signal(signal.SIGKILL)
    return acknowledged


def _appended(number: int) -> IdsAppended:
    return IdsAppended("g", TokenSpan(0, number, (number,) * 200))


async def test_every_record_comes_back_as_it_was(tmp_path: Path) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.write(RECORDS, fsync=True)
    assert (await _recovered(tmp_path / "j")).records == RECORDS


async def test_an_epoch_that_is_over_is_kept_as_one_record_a_choice(tmp_path: Path) -> None:
    def part(choice: int, start: int, end: int, reason: FinishReason | None = None) -> IdsAppended:
        ids = tuple(range(start, end))
        return IdsAppended(
            "g", TokenSpan(choice, start, ids, tuple(map(TokenLogprob, ids)), reason)
        )

    stop = FinishReason.STOP
    grant = Granted("g", 2, "i2", "f2", "p2", REQUEST, (TokenSpan(0, 4, (4,)),))
    written: list[Record] = [
        RECORDS[0],
        part(0, 0, 2),
        part(1, 0, 1),
        part(0, 2, 4),
        grant,
        part(0, 5, 6),
        part(1, 1, 2, stop),
        part(0, 6, 6, stop),
        Sealed("g", 2),
    ]
    async with _open(tmp_path / "j") as journal:
        await journal.write((HeadBound("other", "i", "f", "p", replace(REQUEST)),))
        await journal.write((IdsAppended("other", TokenSpan(0, 0, (9,))),))
        for record in written:
            await journal.write((record,))
        records = (await journal.recover()).records
    assert [record for record in records if record.generation_id == "g"] == [
        RECORDS[0],
        part(0, 0, 4),
        part(1, 0, 1),
        grant,
        part(0, 5, 6, stop),
        part(1, 1, 2, stop),
        Sealed("g", 2),
    ]
    assert IdsAppended("other", TokenSpan(0, 0, (9,))) in records


@pytest.mark.parametrize("end", [Sealed("g", 1), Ended("g", None, CancelReason.CLIENT, None)])
async def test_an_end_before_later_ids_is_kept_when_an_epoch_is_over(
    tmp_path: Path, end: Record
) -> None:
    stop, behind = TokenSpan(0, 0, (1, 2), (), FinishReason.STOP), TokenSpan(0, 2, (3,))
    async with _open(tmp_path / "j") as journal:
        await journal.write((RECORDS[0], IdsAppended("g", stop), IdsAppended("g", behind), end))
        records = (await journal.recover()).records
    whole = TokenSpan(0, 0, (1, 2, 3), (), FinishReason.STOP)
    assert records == (RECORDS[0], IdsAppended("g", whole), end)


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


async def test_a_forgotten_generation_leaves_nothing(tmp_path: Path) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.write((*RECORDS, Sealed("other", 1)))
        await journal.write((Forgotten("g"),))
        assert (await journal.recover()).records == (Sealed("other", 1),)


async def test_the_newest_note_is_kept_and_a_deleted_one_is_not(tmp_path: Path) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.write((Saved("a", "1"), Saved("a", "2"), Saved("b", "3"), Saved("b", None)))
        assert (await journal.recover()).saved == {"a": "2"}


async def test_only_the_newest_events_are_kept(tmp_path: Path) -> None:
    async with _open(tmp_path / "j", events_kept=3) as journal:
        events = [LoggedEvent(n, 0.5, "k", "n", "p", "g", {"a": "b"}, n) for n in range(1, 6)]
        await journal.write(events)
        assert (await journal.recover()).events == tuple(events[2:])


async def test_settled_waits_for_what_was_written_before(tmp_path: Path) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.settled()
        written = journal.write(RECORDS)
        await journal.settled()
        assert written.done()


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


@pytest.mark.parametrize("kill_after", [1, 23, 140])
async def test_a_killed_process_lost_nothing_that_was_acknowledged(
    tmp_path: Path, kill_after: int
) -> None:
    path = tmp_path / "j"
    acknowledged = await asyncio.to_thread(_write_until_killed, path, kill_after)
    records = (await _recovered(path)).records
    starts = [record.span.start for record in records if isinstance(record, IdsAppended)]
    assert starts == list(range(len(starts)))
    assert len(starts) > acknowledged


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


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET kind = 9",
        "UPDATE records SET body = x'ff'",
        "UPDATE records SET body = x''",
        "UPDATE records SET kind = 5, body = x'1009'",
    ],
)
@pytest.mark.parametrize("with_checksum", [False, True])
async def test_a_damaged_record_is_told(tmp_path: Path, damage: str, with_checksum: bool) -> None:
    async with _open(tmp_path / "j") as journal:
        await journal.write((RECORDS[0],))
    connection = sqlite3.connect(tmp_path / "j")
    connection.create_function("row_checksum", -1, checksum)
    connection.execute(damage)
    if with_checksum:
        connection.execute(
            "UPDATE records"
            " SET checksum = row_checksum(number, written_s, generation_id, kind, body)"
        )
    connection.commit()
    connection.close()
    with pytest.raises(DataLoss):
        await _recovered(tmp_path / "j")
