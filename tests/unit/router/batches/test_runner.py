"""What a router sees to beside the lines: what has had its time, and what was left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.common.documents import Document
from services.common.errors import NotFound
from services.router.batches import runner as runner_module
from services.router.batches.runner import BatchRunner
from services.router.core.batches.batch import KIND, Status
from services.router.core.files import Purpose, StoredFile
from services.router.settings import RouterSettings
from tests.unit.router.batches.stage import LEASE_S, Stage
from tests.waiting import until


class Live:
    """A router whose live requests wait, or do not."""

    waiting = False
    asked = 0

    def live_waits(self, batches: object, longest_s: float) -> bool:
        self.asked += 1
        return self.waiting


def made(stage: Stage, live: Live | None = None, **settings: Any) -> BatchRunner:
    runner = BatchRunner(
        live or Live(),  # type: ignore[arg-type]
        stage.controller,  # type: ignore[arg-type]
        stage.files,
        RouterSettings(**{"batch_poll_s": 0.01, "batch_settle_s": 0.0, **settings}),
        lambda: stage.controller.unix_s,
    )
    runner._answering = stage.answers  # type: ignore[assignment]
    return runner


@asynccontextmanager
async def running(runner: BatchRunner) -> AsyncIterator[None]:
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_kept(stage: Stage, kind: str, document_id: str) -> bool:
    try:
        stage.controller.documents.get(kind, document_id)
    except NotFound:
        return False
    return True


async def entered(stage: Stage, name: str, expires_unix_s: int | None) -> None:
    file = StoredFile(name, "t", "x", Purpose.BATCH, 1, 1, expires_unix_s)
    stage.place.kept[file.name] = b"x"
    await stage.files.enter(file)


async def test_what_is_due_is_done_a_batch_answered_and_forgotten_a_file_deleted() -> None:
    stage = Stage(1, faults=0.0, lines=3)
    await entered(stage, "file-old", 2000)
    await entered(stage, "file-kept", None)
    async with running(made(stage, batches_keep_s=3600, files_keep_s=10**6)):
        await until(lambda: stage.batch.ended)
        assert stage.batch.status is Status.COMPLETED
        output = str(stage.batch.output_file_id)
        stage.controller.unix_s = 2000.0
        await until(lambda: not is_kept(stage, "file", "file-old"))
        await until(lambda: "files/file-old" not in stage.place.kept)
        assert is_kept(stage, KIND, "batch_x")
        stage.controller.unix_s = 1000.0 + 3600
        stage.controller.now_s += LEASE_S
        await until(lambda: not is_kept(stage, KIND, "batch_x"))
    assert is_kept(stage, "file", "file-kept")
    assert is_kept(stage, "file", output)


async def test_only_what_is_old_and_nobodys_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(2, faults=0.0)
    await entered(stage, "file-known", None)
    place = stage.place
    place.kept |= {"files/file-lost": b"", "pieces/batch_gone/1-1": b"", "pieces/batch_x/1-1": b""}
    ages = {"files/file-young": 1000.0 + 86400.0}
    place.kept["files/file-young"] = b""
    monkeypatch.setattr(
        place,
        "names",
        lambda folder: iter(
            [(n, ages.get(n, 0.0)) for n in place.kept if n.startswith(f"{folder}/")]
        ),
    )
    stage.controller.unix_s = 1001.0 + 86400.0
    await made(stage)._remove_left_behind()
    assert sorted(place.kept) == [
        "files/file-known",
        "files/file-young",
        "pieces/batch_x/1-1",
    ]


async def test_a_document_that_cannot_be_read_keeps_no_other_from_its_turn() -> None:
    stage = Stage(3, faults=0.0, lines=3)
    broken = Document(KIND, "batch_a", "a", "{}", due_unix_s=1.0)
    stage.controller.documents.keep(stage.controller.documents.put(broken, holds_lease=False))
    async with running(made(stage)):
        await until(lambda: stage.batch.ended)


async def test_no_line_begins_while_live_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LOOK_S", 0.001)
    stage, live = Stage(4, faults=0.0), Live()
    stage.answers.holds = live.waiting = True
    stage.answers.sessions.add(object())  # type: ignore[arg-type]
    runner = made(stage, live, batch_settle_s=60.0)
    async with running(runner):
        await until(lambda: live.asked > 3)
        begun = sum(stage.answers.asked.values())
        stage.answers.holds = False
        await asyncio.sleep(0.05)
        assert sum(stage.answers.asked.values()) == begun
    assert begun <= 8
