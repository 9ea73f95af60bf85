"""Plays the events of a market file, each at its time since the mesh was ready.

How far it came stands in the journal before it happens, so that the next controller goes on where
it was: what became due meanwhile happens at once, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from services.common.errors import ShuntError
from services.controller.core.cluster.market import Offer
from services.controller.journal.journal import Journal, Saved
from services.controller.providers.local import LocalProvider
from services.controller.providers.market_file import MarketEvent, MarketScript

_log = logging.getLogger(__name__)

NOTE = "market"
"""Of the journal's notes."""
RETRY_S = 1.0
"""The market stands still while the journal takes nothing, and is tried again so often."""


class MarketPlay:
    """One run of a market file."""

    def __init__(
        self,
        script: MarketScript,
        run_id: str,
        journal: Journal,
        saved: Mapping[str, str],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`saved` are the journal's notes; a run of another id, or of another script, begins
        anew."""
        self._script = script
        self._journal = journal
        self._run = f"{run_id}/{script.digest}"
        self._wall_clock = wall_clock
        self._ready_unix_s, self._done = self._recover(saved.get(NOTE))

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
            await self._keep()
        for event in self._script.events[self._done :]:
            await asyncio.sleep(self._ready_unix_s + event.at_s - self._wall_clock())
            self._done += 1
            await self._keep()
            _apply(provider, event)

    def _recover(self, note: str | None) -> tuple[float | None, int]:
        if note is None:
            return None, 0
        try:
            kept = json.loads(note)
            if kept["run"] == self._run:
                return float(kept["ready_unix_s"]), int(kept["done"])
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("the market begins anew", extra={"why": repr(error)})
        return None, 0

    async def _keep(self) -> None:
        """Returns once it is durable, and so no other controller leads."""
        kept = {"run": self._run, "ready_unix_s": self._ready_unix_s, "done": self._done}
        said = False
        while True:
            try:
                await self._journal.write([Saved(NOTE, json.dumps(kept))], fsync=True)
                return
            except ShuntError as error:
                if not said:
                    _log.warning("the market stands still", extra={"why": error.message})
                said = True
            await asyncio.sleep(RETRY_S)


def _apply(provider: LocalProvider, event: MarketEvent) -> None:
    if event.take:
        provider.take(event.offer_id, event.take, event.notice_s)
    else:
        provider.change(event.offer_id, count=event.count, price_per_hour=event.price_per_hour)
