"""Blocks of a prompt follow to where its generation will be handed on to, while it is read.

So what decodes waits for the last of them alone. Where the generation will go on is a promise of
the ledger's; if it goes on elsewhere after all, its blocks are fetched or computed as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine

from services.common.errors import ShuntError
from services.common.exchange import KvSource
from services.common.nodes import Member
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.ledger.outcomes import ServingHead
from services.controller.core.ledger.records import HeadBound
from services.controller.engines import Engines, Heir
from services.controller.kv_sources import kv_members, source_of

_log = logging.getLogger(__name__)

FEWEST_POSITIONS = 512
"""Fewer are read in a step or two: their blocks go with the hand-on."""
FOLLOWED_S = 60.0
"""Of a prompt that has not been read by then, the rest goes with its hand-on."""


class HandOns:
    """Of all formations that prefill."""

    def __init__(
        self,
        cluster: Cluster,
        engines: Engines,
        promise: Callable[[str], ServingHead | None],
        *,
        begin: Callable[[Coroutine[None, None, None], str | None], object],
    ) -> None:
        """`promise` says where a generation will be handed on to; `begin` starts a call, which ends
        with the node that is named."""
        self._cluster = cluster
        self._engines = engines
        self._promise = promise
        self._begin = begin

    def began(self, bound: HeadBound) -> None:
        """A generation was accepted, and its prompt is about to be read."""
        if len(bound.request.prompt_ids) < FEWEST_POSITIONS:
            return
        generation_id, formation_id = bound.generation_id, bound.formation_id
        head = self._promise(generation_id)
        if head is None:
            return
        members = self._cluster.view.members(formation_id)
        there = head.route.formation_id
        heir = Heir(
            kv_members(self._cluster.view.members(there)), frozenset({generation_id}), there
        )
        if members and heir.members:
            source = source_of(formation_id, members)
            self._begin(self._follow(source, members[0], heir), members[0].node_id)

    async def _follow(self, source: KvSource, head: Member, heir: Heir) -> None:
        try:
            await self._engines.copy_ahead(source, head, [heir], FOLLOWED_S, follows=True)
        except ShuntError as error:
            _log.warning("blocks do not follow", extra={"why": error.message})
