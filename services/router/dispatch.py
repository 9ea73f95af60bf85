"""New requests on their way to pipelines: what heads tell, and who waits for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from services.common.errors import ShuntError
from services.common.exchange import PrefixNews, Route
from services.router.core.balancer import Balancer
from services.router.core.dispatching import Dispatcher, Sending, Waiter
from services.router.head_watch import HeadWatch
from services.router.heads import Heads


class Dispatch:
    """The dispatcher, with its waiters as futures."""

    def __init__(self, balancer: Balancer, heads: Heads, clock: Callable[[], float]) -> None:
        self.core = Dispatcher(balancer)
        self._clock = clock
        self._watch = HeadWatch(heads, self._told)
        self._waiting: dict[Waiter, tuple[asyncio.Future[Sending], Callable[[], None]]] = {}

    def update(self, routes: Sequence[Route]) -> None:
        """The routes are these."""
        self._watch.update(routes)
        self.core.update(routes)

    def look(self) -> None:
        """Something has changed that somebody may wait for."""
        for future, check in self._waiting.values():
            try:
                check()
            except ShuntError as error:
                _end(future, error)
        for waiter, outcome in self.core.released(self._clock()):
            _end(self._waiting[waiter][0], outcome)

    async def wait(
        self, waiter: Waiter, until_s: float, check: Callable[[], None]
    ) -> Sending | None:
        """Where it goes, once it does; None when that time has come. Raises ResourceExhausted where
        it would come too late, and what `check` raises, now or when something changes."""
        check()
        future: asyncio.Future[Sending] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = future, check
        self.core.wait(waiter)
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock())):
                return await future
        except TimeoutError:
            return None
        finally:
            self.core.leave(waiter)
            del self._waiting[waiter]

    async def close(self) -> None:
        """Hears no head any more."""
        await self._watch.close()

    def _told(self, formation_id: str, news: PrefixNews) -> None:
        self.core.told(formation_id, news, self._clock())
        if self._waiting:
            self.look()


def _end(future: asyncio.Future[Sending], outcome: Sending | ShuntError) -> None:
    if future.done():
        return
    if isinstance(outcome, ShuntError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
