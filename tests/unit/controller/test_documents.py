"""Documents with a journal: what was answered is there after a restart, what failed is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.common.documents import Document
from services.common.errors import Aborted, NotFound, ResourceExhausted, StaleEpoch
from services.controller.core.documents import DocumentSettings
from services.controller.documents import DocumentRuntime
from services.controller.journal.journal import Item, Saved
from services.controller.journal.sqlite import SqliteJournal


def batch(name: str = "a", **fields: Any) -> Document:
    return Document("batch", name, "t", "{}", **{"due_unix_s": 1.0, **fields})


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def opened(path: Path, clock: Clock) -> tuple[DocumentRuntime, SqliteJournal]:
    journal = SqliteJournal(path)
    recovered = await journal.recover()
    return (
        DocumentRuntime(
            DocumentSettings(lease_s=10.0),
            journal,
            recovered.saved,
            clock=clock,
            wall_clock=lambda: 100.0,
        ),
        journal,
    )


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    documents, journal = await opened(tmp_path / "journal.db", clock)
    for name in ("a", "b"):
        await documents.put(batch(name), holds_lease=False)
    lent = await documents.claim(["batch"])
    assert lent is not None
    assert (await documents.put(lent, holds_lease=True)).version == 2
    await documents.delete("batch", "b")
    await journal.close()

    documents, journal = await opened(tmp_path / "journal.db", clock)
    again = await documents.get("batch", "a")
    assert (again.version, again.lease) == (2, 1)
    with pytest.raises(NotFound):
        await documents.get("batch", "b")
    clock.now_s = 9.0
    assert await documents.claim(["batch"]) is None  # whoever had it may come back
    await documents.renew("batch", "a", 1, give_back=False)
    clock.now_s = 19.0
    taken = await documents.claim(["batch"])
    assert taken is not None
    assert taken.lease == 2
    with pytest.raises(StaleEpoch):
        await documents.put(again, holds_lease=True)
    await journal.close()


class FailingJournal:
    """Takes what it is told to take."""

    def __init__(self) -> None:
        self.fails = False
        self.taken: list[Item] = []
        self.held = asyncio.Event()
        self.held.set()

    async def write(self, items: Sequence[Item], *, fsync: bool = False) -> None:
        assert fsync
        await self.held.wait()
        if self.fails:
            raise ResourceExhausted("the disk is full")
        self.taken += items

    async def settled(self) -> None: ...


@pytest.fixture
def journal() -> FailingJournal:
    return FailingJournal()


@pytest.fixture
def documents(journal: FailingJournal) -> DocumentRuntime:
    return DocumentRuntime(
        DocumentSettings(),
        journal,  # type: ignore[arg-type]
        {},
        clock=Clock(),
        wall_clock=lambda: 100.0,
    )


async def test_what_the_journal_did_not_take_lives_nowhere(
    documents: DocumentRuntime, journal: FailingJournal
) -> None:
    journal.fails = True
    with pytest.raises(ResourceExhausted):
        await documents.put(batch(), holds_lease=False)
    with pytest.raises(NotFound):
        await documents.get("batch", "a")
    journal.fails = False
    await documents.put(batch(), holds_lease=False)
    journal.fails = True
    for change in (documents.claim(["batch"]), documents.delete("batch", "a")):
        with pytest.raises(ResourceExhausted):
            await change
    journal.fails = False
    lent = await documents.claim(["batch"])
    assert lent is not None
    assert (lent.version, lent.lease) == (1, 1)


async def test_of_two_changes_at_once_one_is_made(
    documents: DocumentRuntime, journal: FailingJournal
) -> None:
    first = await documents.put(batch(), holds_lease=False)
    answers = await asyncio.gather(
        *(documents.put(first, holds_lease=False) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(answer) is Aborted for answer in answers) == [False, True]


async def test_a_caller_that_leaves_leaves_no_half_of_a_change(
    documents: DocumentRuntime, journal: FailingJournal
) -> None:
    journal.held.clear()
    leaving = asyncio.create_task(documents.put(batch(), holds_lease=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    journal.held.set()
    async with asyncio.timeout(60):
        while not journal.taken:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert isinstance(journal.taken[0], Saved)
    assert (await documents.put(await documents.get("batch", "a"), holds_lease=False)).version == 2
