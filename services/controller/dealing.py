"""Deals tenants' limits out to routers, and notes to whom, for another controller to know."""

from __future__ import annotations

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
        self._noted = frozenset[str](json.loads(saved.get(NOTE, "[]")))
        self._shares = TenantShares(self._noted)

    async def reported(
        self, router_id: str, routers: int, demands: Mapping[str, TenantDemand]
    ) -> Shares:
        """What a router reports, and its shares. Who is there is noted before a router that comes
        is told its own; without the note where the journal takes none."""
        shares = self._shares.reported(router_id, routers, demands, self._clock())
        if (names := self._shares.names) != self._noted:
            before, self._noted = self._noted, names
            try:
                await self._journal.write((Saved(NOTE, json.dumps(sorted(names))),), fsync=True)
            except ShuntError as error:
                self._noted = before
                _log.warning("routers are not noted", extra={"why": error.message})
        return shares
