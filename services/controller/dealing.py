"""Deals tenants' limits out to routers, and notes to whom, for another controller to know."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping

from services.common.demand import Shares, TenantDemand
from services.common.errors import ShuntError
from services.controller.core.shares import TenantShares
from services.controller.journal.journal import Journal, Saved

NOTE = "routers"
"""Names, as JSON."""
_log = logging.getLogger(__name__)


class Dealing:
    """Of one controller."""

    def __init__(
        self, journal: Journal, saved: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        """`saved`: the journal's notes as they were recovered."""
        self._journal, self._clock = journal, clock
        known = frozenset[str](json.loads(saved.get(NOTE, "[]")))
        self._shares = TenantShares(known)
        self._noted: frozenset[str] | None = known
        """Those in the note, or on their way there; None: the journal did not take them."""
        self._noting: asyncio.Task[None] | None = None

    async def reported(
        self, router_id: str, routers: int, demands: Mapping[str, TenantDemand]
    ) -> Shares:
        """What a router reports, and its shares. Who is there is noted before a router that comes
        is told its own; without the note where the journal takes none."""
        shares = self._shares.reported(router_id, routers, demands, self._clock())
        if (names := self._shares.names) != self._noted:
            self._noted = names
            self._noting = asyncio.create_task(self._note(names))
            await asyncio.shield(self._noting)  # a router that waits no longer ends no note
        return shares

    async def _note(self, names: frozenset[str]) -> None:
        try:
            await self._journal.write((Saved(NOTE, json.dumps(sorted(names))),), fsync=True)
        except ShuntError as error:
            self._noted = None
            _log.warning("routers are not noted", extra={"why": error.message})
