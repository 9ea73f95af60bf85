"""A node: its parts, who says how long it will be there, and what comes of that."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from services.cli.node.child import Child
from services.cli.node.metrics import NOTICES
from services.cli.node.notices import Heard, NoticeSource, listen
from services.common.notices import Notice, NoticeKind
from services.common.server import Signals
from services.engine.notices import line_of

_log = logging.getLogger(__name__)

LOOK_S = 1.0


class SignalSource:
    """SIGTERM and SIGINT: the first one leaves the node `drain_s`, the second one nothing."""

    name = "signals"
    pause_s = 0.0

    def __init__(self, drain_s: float, clock: Callable[[], float]) -> None:
        """From here on neither ends the process by itself."""
        self._left_s = drain_s
        self._clock = clock
        self._signals = Signals()

    async def look(self) -> Iterable[Notice]:
        by_hand = await self._signals.next() is signal.SIGINT
        kind = NoticeKind.OPERATOR if by_hand else NoticeKind.SHUTDOWN
        left_s, self._left_s = self._left_s, 0.0
        return (Notice(kind, self._clock() + left_s),)


class Node:
    """Runs until there is no more time, or nothing to run any more."""

    def __init__(
        self,
        store: Child,
        engine: Child,
        told: list[bytes],
        *,
        stop_grace_s: float,
        set_ready: Callable[[bool], Awaitable[None]],
    ) -> None:
        """`told` is what a new engine process is told first, kept here."""
        self._store, self._engine = store, engine
        self._told = told
        self._stop_grace_s = stop_grace_s
        self._set_ready = set_ready
        self._heard = Heard()
        self._changed = asyncio.Event()
        """There is another deadline."""

    async def run(self, sources: Sequence[NoticeSource]) -> None:
        """Raises FailedPrecondition when a part does not start for a setting of its own."""
        keepers = [asyncio.create_task(part.keep()) for part in (self._store, self._engine)]
        beside = [asyncio.create_task(listen(source, self._hear)) for source in sources]
        beside.append(asyncio.create_task(self._tell_health()))
        leaving = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait((leaving, *keepers, *beside), return_when=asyncio.FIRST_COMPLETED)
            if self._heard.departure is not None:
                await asyncio.wait((leaving,))
            for task in (*keepers, *beside):
                if task.done():
                    task.result()
        finally:
            for task in (leaving, *beside):
                task.cancel()
            await asyncio.gather(leaving, *beside, return_exceptions=True)
            await self._engine.end(self._stop_grace_s)
            await self._store.end(self._stop_grace_s)
            await asyncio.gather(*keepers, return_exceptions=True)

    def _hear(self, notice: Notice) -> None:
        if not self._heard.hear(notice):
            return
        NOTICES.labels(notice.kind.value).inc()
        deadline_s, told = notice.deadline_s, {"kind": notice.kind.value}
        if deadline_s is not None:
            told["left_s"] = f"{deadline_s - time.monotonic():.1f}"
        _log.warning("notice", extra=told)
        line = line_of(notice)
        self._told.append(line)
        self._engine.say(line)
        if deadline_s is not None:
            self._engine.let_go()
            self._changed.set()

    async def _until_gone(self) -> None:
        """Returns when the engine has ended behind a notice, or should have."""
        await self._changed.wait()
        ended = asyncio.create_task(self._engine.ended.wait())
        try:
            while not ended.done():
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                try:
                    left_s = self._left_s()
                    await asyncio.wait(
                        (ended, changed), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if self._left_s() <= 0:
                        return
                finally:
                    changed.cancel()
        finally:
            ended.cancel()

    def _left_s(self) -> float:
        """Until the engine's time is over."""
        departure = self._heard.departure
        if departure is None or departure.deadline_s is None:
            raise AssertionError
        return max(0.0, departure.deadline_s + self._stop_grace_s - time.monotonic())

    async def _tell_health(self) -> None:
        """Healthy while both parts are."""
        was = False
        while True:
            serves = [await part.serves() for part in (self._store, self._engine)]
            if all(serves) is not was:
                was = not was
                _log.info("node serves" if was else "node does not serve")
                await self._set_ready(was)
            await asyncio.sleep(LOOK_S)
