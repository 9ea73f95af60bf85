"""What this process is told of the time it has: by signals, and by whoever started it.

`shunt node` writes a line of JSON a notice to the standard input of its engine:

    {"kind": "spot", "deadline_s": 8123.5}      times are on CLOCK_MONOTONIC, the same for both
    {"kind": "rebalance", "deadline_s": null}   advice
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
import sys
from collections.abc import Callable

from services.common.errors import InvalidArgument
from services.common.notices import Notice, NoticeKind
from services.common.server import Signals

_log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024


class Notices:
    """All of them, in the order they come. A first signal gives the process `notice_s`, a second
    one none."""

    def __init__(self, notice_s: float, clock: Callable[[], float]) -> None:
        self._notice_s = notice_s
        self._clock = clock
        self._signals = Signals()
        self._told: asyncio.Queue[Notice] = asyncio.Queue()

    async def next(self) -> Notice:
        """The next one that comes, or has come already."""
        return await self._told.get()

    async def listen(self, *, to_lines: bool) -> None:
        """Hears signals, and the lines of standard input where somebody writes them; until
        cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._signalled())
            if to_lines:
                group.create_task(self._written())

    async def _signalled(self) -> None:
        left_s = self._notice_s
        while True:
            number = await self._signals.next()
            by_hand = number is signal.SIGINT
            kind = NoticeKind.OPERATOR if by_hand else NoticeKind.SHUTDOWN
            self._told.put_nowait(Notice(kind, self._clock() + left_s))
            left_s = 0.0

    async def _written(self) -> None:
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while True:
            try:
                line = await reader.readline()
                if not line:
                    return
                self._told.put_nowait(notice_of(line))
            except (InvalidArgument, ValueError) as error:  # ValueError: a line beyond the limit
                _log.warning("a line that is no notice", extra={"why": str(error)})


def line_of(notice: Notice) -> bytes:
    """As it is written."""
    told = {"kind": notice.kind.value, "deadline_s": notice.deadline_s}
    return json.dumps(told).encode() + b"\n"


def notice_of(line: bytes) -> Notice:
    """As it is read; raises InvalidArgument."""
    try:
        told = json.loads(line)
        kind = NoticeKind(told["kind"])
        deadline_s = None if kind.is_advice else float(told["deadline_s"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgument("a notice is JSON with kind and deadline_s", field="line") from error
    if deadline_s is not None and not math.isfinite(deadline_s):
        raise InvalidArgument("deadline_s is a time", field="deadline_s")
    return Notice(kind, deadline_s)
