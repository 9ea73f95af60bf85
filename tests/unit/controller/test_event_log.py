from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from services.common import logs
from services.common.errors import ResourceExhausted
from services.controller.event_log import EventLog
from services.controller.journal.journal import LoggedEvent


class _Journal:
    def __init__(self) -> None:
        self.written: list[Any] = []
        self.full = False
        self.breaks = False

    def write(self, items: Sequence[Any], *, fsync: bool = False) -> Awaitable[None]:
        if self.full:
            raise ResourceExhausted("too much waits")
        self.written += items
        return self._settle()

    async def _settle(self) -> None:
        if self.breaks:
            raise ResourceExhausted("disk full")


def _log(journal: _Journal, kept: int = 10) -> EventLog:
    return EventLog(journal, lambda: 12.5, kept)  # type: ignore[arg-type]


async def _all(log: EventLog, from_number: int = 0) -> list[int]:
    return [event.number async for event in log.follow(from_number, wait=False)]


async def test_events_are_numbered_and_journaled() -> None:
    journal = _Journal()
    log = _log(journal)
    first = log.add("node_lost", node_id="n", attributes={"cause": "silence"})
    log.add("node_lost", node_id="m")
    assert first == LoggedEvent(1, 12.5, "node_lost", "n", "", "", {"cause": "silence"})
    assert journal.written[0] == first
    assert await _all(log) == [1, 2]
    assert await _all(log, 2) == [2]
    assert await _all(log, 3) == []


async def test_numbers_go_on_behind_what_was_recovered() -> None:
    log = _log(_Journal())
    log.recover([LoggedEvent(7, 0.0, "a"), LoggedEvent(8, 0.0, "b")])
    assert log.add("c").number == 9
    assert await _all(log) == [7, 8, 9]


async def test_an_event_names_the_plan_that_is_carried_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = _Journal()
    log = _log(journal)
    with caplog.at_level(logging.INFO):
        log.add("node_lost")
        log.plan = 3
        log.add("node_lost")
    assert [event.plan for event in journal.written] == [0, 3]
    assert [getattr(line, "plan", None) for line in caplog.records] == [None, 3]
    again = _log(_Journal())
    again.recover(journal.written)
    assert again.add("node_returned").plan == 3


async def test_only_the_newest_are_kept() -> None:
    log = _log(_Journal(), kept=2)
    for _ in range(5):
        log.add("a")
    assert await _all(log) == [4, 5]


async def test_a_follower_gets_what_comes_later_and_ends_with_the_log() -> None:
    log = _log(_Journal())
    got: list[int] = []

    async def follow() -> None:
        async for event in log.follow(0, wait=True):
            got.append(event.number)

    following = asyncio.create_task(follow())
    for _ in range(3):
        log.add("a")
        await asyncio.sleep(0)
    log.close()
    await asyncio.wait_for(following, 60)
    assert got == [1, 2, 3]


async def test_the_newest_of_a_kind_is_found() -> None:
    log = _log(_Journal())
    for node_id in ("n", "m", "n"):
        log.add("noticed", node_id=node_id)
    newest = log.newest("noticed", "n")
    assert newest is not None
    assert newest.number == 3
    assert log.newest("noticed", "x") is None


async def test_a_journal_that_fails_loses_the_event_only() -> None:
    journal = _Journal()
    log = _log(journal)
    journal.full = True
    log.add("a")
    journal.full, journal.breaks = False, True
    log.add("b")
    await asyncio.sleep(0)
    assert await _all(log) == [1, 2]


async def test_a_line_about_a_generation_names_it(caplog: pytest.LogCaptureFixture) -> None:
    log = _log(_Journal())
    with caplog.at_level(logging.INFO):
        for kind in ("generation_bound", "generation_granted"):
            log.add(kind, pipeline_id="p", generation_id="g-1", attributes={"epoch": "1"})
    told = [vars(record) for record in caplog.records]
    assert [(line["generation_id"], line["epoch"]) for line in told] == [("g-1", "1")] * 2
    assert all("node_id" not in line for line in told)
    assert told[0]["name"] == logs.access.name  # one a generation, and never thinned out


async def test_what_somebody_should_look_at_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    log = _log(_Journal())
    with caplog.at_level(logging.INFO):
        log.add("load_failed", node_id="n-1", attributes={"reason": "no weights"})
        log.add("stage_loaded", node_id="n-1")
    assert [(r.message, r.levelno) for r in caplog.records] == [
        ("load_failed", logging.WARNING),
        ("stage_loaded", logging.INFO),
    ]
