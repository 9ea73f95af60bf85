"""Blocks of generations that leave a formation one by one, on their way to where these go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace

from services.common.errors import ShuntError
from services.common.exchange import KvSource
from services.common.nodes import Member
from services.controller.core.departure.links import Links
from services.controller.core.departure.move import Stream
from services.controller.engines import Engines, Heir

_log = logging.getLogger(__name__)

ROUND_S = 5.0
"""A round that takes longer is over a link that is not worth it."""


class Pushes:
    """Of one formation. One generation's blocks go after another's, for they share one link, and
    round by round: behind each it is seen what the link gives, and chosen anew."""

    def __init__(
        self,
        engines: Engines,
        links: Links,
        source: KvSource,
        head: Member,
        *,
        block_bytes: int,
        block_positions: int,
        over: dict[str, int],
        clock: Callable[[], float],
    ) -> None:
        """`block_bytes` are those of a full block of all layers; 0: blocks go nowhere. How many
        blocks of each generation are where it goes on is noted in `over`."""
        self.went = asyncio.Event()
        """Something is over, or will not be."""
        self._engines, self._links = engines, links
        self._source, self._head = source, head
        self._block_bytes, self._block_positions = block_bytes, block_positions
        self._clock = clock
        self._going: dict[str, Heir] = {}
        """In the order in which they began."""
        self._begun = asyncio.Event()
        self._over = over
        self._came: dict[str, int] = {}
        """Of those that had a round here, what `over` was behind it."""
        self._whole: set[str] = set()
        """Those of which another round would bring no fewer than the last one."""
        self._stay: set[str] = set()
        """Their blocks go nowhere."""

    def seen(self, stream: Stream) -> Stream:
        """With the bytes that have yet to travel."""
        name = stream.generation_id
        if name in self._stay:
            return replace(stream, bytes=None)
        if name in self._whole:
            return replace(stream, bytes=0)
        over = self._over.get(name, 0)
        return stream.with_blocks(self._block_bytes, self._block_positions, over)

    def begin(self, generation_id: str, heir: Heir) -> None:
        """Its blocks go there when those that began before are over."""
        self._going[generation_id] = heir
        self._begun.set()

    def stays(self, generation_id: str) -> None:
        """There is nobody whom its blocks could go to."""
        self._stay.add(generation_id)
        self._end(generation_id)

    def keep(self, generation_ids: Collection[str]) -> None:
        """The others have left, or do without."""
        for name in self._going.keys() - set(generation_ids):
            self._end(name)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if not self._going:
                self._begun.clear()
                await self._begun.wait()
            name, heir = next(iter(self._going.items()))
            await self._go(name, heir)

    async def _go(self, name: str, heir: Heir) -> None:
        began_s, before = self._clock(), self._came.get(name, 0)
        try:
            ahead = await self._engines.copy_ahead(
                self._source, self._head, [heir], ROUND_S, max_rounds=1
            )
        except ShuntError as error:
            _log.warning("blocks do not go ahead", extra={"why": error.message})
            self.stays(name)
            return
        now_s = self._clock()
        if ahead.tells_of_link(before):
            self._links.carried(ahead.size_bytes, ahead.took_s, now_s - began_s, now_s)
        self._over[name] = self._came[name] = ahead.blocks
        if ahead.over:
            self._whole.add(name)
            self._end(name)
        elif ahead.blocks == before:
            # Whoever goes on with it has no room, or does not answer. Fewer are of a head that was
            # asked too late, and has begun anew.
            self.stays(name)

    def _end(self, name: str) -> None:
        self._going.pop(name, None)
        self.went.set()
