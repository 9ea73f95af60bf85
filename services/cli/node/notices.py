"""Where notices come from: sources behind one seam, each asked again, whatever it says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from services.common.errors import ShuntError
from services.common.notices import Notice

_log = logging.getLogger(__name__)

SAME_NOTICE_S = 0.5
"""A deadline is not another one for so little: it is computed anew from each answer."""


class NoticeSource(Protocol):
    """Somebody who knows how long this machine will be there."""

    @property
    def name(self) -> str: ...

    @property
    def pause_s(self) -> float:
        """Between two looks."""
        ...

    async def look(self) -> Iterable[Notice]:
        """What is said now, or, of a source that can wait, what has changed. Raises ShuntError
        where that cannot be had, in bounded time."""
        ...


class Heard:
    """What of all that was said is news: the earliest deadline counts, and no advice behind it."""

    def __init__(self) -> None:
        self.advised = False
        self.departure: Notice | None = None

    def hear(self, notice: Notice) -> bool:
        """Whether it changes anything."""
        if notice.deadline_s is None:
            news = not self.advised and self.departure is None
            self.advised = True
            return news
        known_s = None if self.departure is None else self.departure.deadline_s
        if known_s is not None and notice.deadline_s > known_s - SAME_NOTICE_S:
            return False
        self.departure = notice
        return True


async def listen(source: NoticeSource, hear: Callable[[Notice], None]) -> None:
    """Asks until cancelled. What cannot be had is logged once, and once more when it can be."""
    fails = False
    while True:
        try:
            for notice in await source.look():
                hear(notice)
        except ShuntError as error:
            if not fails:
                told = {"source": source.name, "why": error.message}
                _log.warning("no notices from here for now", extra=told)
            fails = True
        else:
            if fails:
                _log.info("notices from here again", extra={"source": source.name})
            fails = False
        await asyncio.sleep(source.pause_s)
