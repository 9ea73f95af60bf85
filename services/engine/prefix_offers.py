"""Beginnings of prompts that a pipeline which serves offers to others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from services.common.exchange import KvMember, KvSource
from services.engine.block_moves import BlockMoves
from services.engine.core.batching import Batching
from services.engine.counters import OFFERED_BLOCKS
from services.engine.formation import FormationPart
from services.engine.kv_exchange import MAX_NAMES


class PrefixOffers:
    """Of one head."""

    def __init__(self, batching: Batching, moves: BlockMoves, at_once: int) -> None:
        """So many pipelines are offered something at a time."""
        self._batching, self._moves = batching, moves
        self._at_once = at_once
        self._offering = 0

    async def offer(
        self, formation_id: str, layout_name: str, names: Sequence[bytes], limit_s: float
    ) -> tuple[int, KvSource]:
        """Has every stage keep for so long what the prefix cache has of these: so many from the
        first on, and who they are. Raises FailedPrecondition for another formation or layout,
        InvalidArgument for too many blocks and for one that is named twice, ResourceExhausted for
        too many offers at once."""
        formation = self._moves.headed(formation_id)
        if formation.kv_layout.name != layout_name:
            told = f"blocks lie as {formation.kv_layout.name} here"
            raise FailedPrecondition(told, field="layout")
        if len(names) > MAX_NAMES:
            raise InvalidArgument(f"at most {MAX_NAMES} blocks", field="names")
        if len(set(names)) < len(names):
            raise InvalidArgument("a block is named twice", field="names")
        if self._offering >= self._at_once:
            raise ResourceExhausted(f"at most {self._at_once} offers at once", field="names")
        self._offering += 1
        kept = 0
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    kept = await self._kept(formation, names, limit_s)
        finally:
            self._offering -= 1
        OFFERED_BLOCKS.inc(kept)
        members = formation.membership.members
        source = tuple(KvMember(one.address, one.incarnation, one.layers) for one in members)
        return kept, KvSource(formation_id, source, limit_s)

    async def _kept(self, formation: FormationPart, names: Sequence[bytes], keep_s: float) -> int:
        moves = self._moves
        with moves.giving_back(formation), self._batching.offered(names) as leaving:
            if not (leaving.blocks and await moves.computed(formation, leaving)):
                return 0
            return await moves.kept(formation, leaving, keep_s=keep_s, offered=True) or 0
