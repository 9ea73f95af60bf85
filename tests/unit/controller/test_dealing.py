"""Whom a controller deals limits out to is known to the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.demand import TenantDemand
from services.controller.core.shares import EVEN
from services.controller.dealing import Dealing
from services.controller.journal.sqlite import SqliteJournal
from tests.unit.controller.test_documents import Clock, FailingJournal
from tests.waiting import until

ASKED = {"acme": TenantDemand(5, 50, 1.0)}


async def opened(path: Path) -> tuple[Dealing, SqliteJournal]:
    journal = SqliteJournal(path)
    return Dealing(journal, (await journal.recover()).saved, Clock()), journal


async def test_a_controller_that_takes_over_gives_a_router_that_comes_what_nobody_holds(
    tmp_path: Path,
) -> None:
    dealing, journal = await opened(tmp_path / "journal.db")
    assert (await dealing.reported("one", 0, ASKED)).of("acme") == 1.0
    assert (await dealing.reported("two", 0, ASKED)).of("acme") == EVEN / 2
    await journal.close()

    dealing, journal = await opened(tmp_path / "journal.db")
    assert (await dealing.reported("three", 0, ASKED)).of("acme") == EVEN / 3
    await journal.close()

    dealing, journal = await opened(tmp_path / "journal.db")
    assert (await dealing.reported("one", 0, ASKED)).routers == 3
    await journal.close()


async def test_where_the_journal_takes_no_note_shares_are_told_and_the_note_is_tried_again() -> (
    None
):
    journal = FailingJournal()
    dealing = Dealing(journal, {}, Clock())  # type: ignore[arg-type]
    journal.fails = True
    assert (await dealing.reported("one", 0, ASKED)).of("acme") == 1.0
    journal.fails = False
    for _ in range(2):
        await dealing.reported("one", 1, ASKED)
    assert [item.value for item in journal.taken] == ['["one"]'], "once, and no more"  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_note_that_a_router_did_not_wait_for_is_tried_again_only_if_it_failed(
    fails: bool,
) -> None:
    journal = FailingJournal()
    dealing = Dealing(journal, {}, Clock())  # type: ignore[arg-type]
    journal.held.clear()
    asked = asyncio.create_task(dealing.reported("one", 0, ASKED))
    await until(lambda: dealing._noting)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    journal.fails = fails
    journal.held.set()
    assert dealing._noting is not None
    await dealing._noting
    journal.fails = False
    await dealing.reported("one", 0, ASKED)
    assert [item.value for item in journal.taken] == ['["one"]']  # type: ignore[union-attr]
