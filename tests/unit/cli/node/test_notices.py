from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.node.notices import SAME_NOTICE_S, Heard, listen
from services.common.errors import Unavailable
from services.common.notices import Notice, NoticeKind
from tests.waiting import until

ADVICE = Notice(NoticeKind.REBALANCE, None)
NOTICES = st.just(ADVICE) | st.builds(
    Notice, st.sampled_from([NoticeKind.SPOT, NoticeKind.SHUTDOWN]), st.floats(0, 200)
)


def test_the_first_of_two_ways_counts_and_the_second_changes_nothing() -> None:
    heard = Heard()
    assert heard.hear(Notice(NoticeKind.SPOT, 120.0))
    assert not heard.hear(Notice(NoticeKind.SPOT, 120.0 - SAME_NOTICE_S / 2))
    assert not heard.hear(Notice(NoticeKind.SHUTDOWN, 500.0))
    assert not heard.hear(ADVICE), "it is too late for advice"
    assert heard.departure == Notice(NoticeKind.SPOT, 120.0)


@given(st.lists(NOTICES, max_size=12))
def test_the_earliest_deadline_counts_whatever_comes_in_what_order(notices: list[Notice]) -> None:
    heard = Heard()
    news = [notice for notice in notices if heard.hear(notice)]
    deadlines = [n.deadline_s for n in notices if n.deadline_s is not None]
    assert heard.advised is (ADVICE in notices)
    assert sum(notice is ADVICE for notice in news) <= 1
    if deadlines:
        assert heard.departure is not None
        assert heard.departure.deadline_s is not None
        assert heard.departure.deadline_s <= min(deadlines) + SAME_NOTICE_S
    said = [n.deadline_s for n in news if n.deadline_s is not None]
    assert said == sorted(said, reverse=True)


class Source:
    """Fails for as long as it is told to."""

    name, pause_s = "somebody", 0.001

    def __init__(self) -> None:
        self.fails = True
        self.looks = 0

    async def look(self) -> Iterable[Notice]:
        self.looks += 1
        if self.fails:
            raise Unavailable("no answer")
        return [ADVICE]


async def test_a_source_that_fails_is_asked_on_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    source, heard = Source(), list[Notice]()
    task = asyncio.create_task(listen(source, heard.append))
    try:
        await until(lambda: source.looks > 5)
        source.fails = False
        await until(lambda: len(heard) > 2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["no notices from here for now", "notices from here again"]
