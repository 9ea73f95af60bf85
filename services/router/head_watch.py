"""Follows what the heads of all routes have computed, and how busy they are: a stream for each,
anew when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing

from services.common.errors import ShuntError
from services.common.exchange import PrefixNews, Route
from services.router.heads import Heads

_log = logging.getLogger(__name__)
AGAIN_S = 1.0


class HeadWatch:
    """Hears the heads of the routes there are."""

    def __init__(self, heads: Heads, told: Callable[[str, PrefixNews], None]) -> None:
        """`told` hears what the head of a formation tells."""
        self._heads = heads
        self._told = told
        self._watches: dict[str, asyncio.Task[None]] = {}
        """By formation."""

    def update(self, routes: Sequence[Route]) -> None:
        """Follows these heads and no others."""
        heads = {route.formation_id: route for route in routes}
        for formation_id in self._watches.keys() - heads.keys():
            self._watches.pop(formation_id).cancel()
        for formation_id in heads.keys() - self._watches.keys():
            watch = self._watch(heads[formation_id])
            self._watches[formation_id] = asyncio.get_running_loop().create_task(watch)

    async def close(self) -> None:
        """Ends every stream."""
        watches = list(self._watches.values())
        self._watches.clear()
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, route: Route) -> None:
        while True:
            try:
                async with aclosing(self._heads.prefixes(route)) as news:
                    async for told in news:
                        self._told(route.formation_id, told)
            except ShuntError as error:
                _log.debug("a head tells nothing", extra={"reason": error.message})
            await asyncio.sleep(AGAIN_S)
