"""Plays the events of a market file, each at its time since the mesh was ready.

How far it came stands in a file, so that a restarted controller goes on where it was: what became
due while it was away happens at once, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from services.controller.core.cluster.market import Offer
from services.controller.providers.local import LocalProvider
from services.controller.providers.market_file import MarketEvent, MarketScript

_log = logging.getLogger(__name__)


class MarketPlay:
    """One run of a market file."""

    def __init__(
        self,
        script: MarketScript,
        progress: Path,
        run_id: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`progress` is the file that outlives a controller; a run of another id, or of another
        script, begins anew."""
        self._script = script
        self._progress = progress
        self._run = f"{run_id}/{script.digest}"
        self._wall_clock = wall_clock
        self._ready_unix_s, self._done = self._recover()

    def offers(self) -> tuple[Offer, ...]:
        """As the events that were played before have left them."""
        offers = {offer.offer_id: offer for offer in self._script.offers}
        for event in self._script.events[: self._done]:
            offer = offers[event.offer_id]
            if event.count is not None:
                offer = replace(offer, count=event.count)
            if event.price_per_hour is not None:
                offer = replace(offer, price_per_hour=event.price_per_hour)
            offers[event.offer_id] = offer
        return tuple(offers.values())

    @asynccontextmanager
    async def playing(
        self, provider: LocalProvider, ready: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Plays inside the block, once `ready` returns."""
        async with asyncio.TaskGroup() as tasks:
            play = tasks.create_task(self.play(provider, ready))
            try:
                yield
            finally:
                play.cancel()

    async def play(self, provider: LocalProvider, ready: Callable[[], Awaitable[None]]) -> None:
        """Returns when every event was played."""
        await ready()
        if self._ready_unix_s is None:
            self._ready_unix_s = self._wall_clock()
            self._keep()
        for event in self._script.events[self._done :]:
            await asyncio.sleep(self._ready_unix_s + event.at_s - self._wall_clock())
            self._done += 1
            self._keep()
            _apply(provider, event)

    def _recover(self) -> tuple[float | None, int]:
        try:
            kept = json.loads(self._progress.read_text())
            if kept["run"] == self._run:
                return float(kept["ready_unix_s"]), int(kept["done"])
        except FileNotFoundError:
            return None, 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("the market begins anew", extra={"why": repr(error)})
        return None, 0

    def _keep(self) -> None:
        partial = self._progress.with_suffix(".new")
        kept = {"run": self._run, "ready_unix_s": self._ready_unix_s, "done": self._done}
        try:
            partial.write_text(json.dumps(kept))
            partial.replace(self._progress)
        except OSError as error:  # a restarted controller will play again what it cannot know
            _log.error("the market's progress is not kept", extra={"why": str(error)})


def _apply(provider: LocalProvider, event: MarketEvent) -> None:
    if event.take:
        provider.take(event.offer_id, event.take, event.notice_s)
    else:
        provider.change(event.offer_id, count=event.count, price_per_hour=event.price_per_hour)
