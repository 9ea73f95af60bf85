"""A prompt's beginning on its way from a pipeline that has it in its prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from services.common.exchange import PrefixHolder
from services.engine.core.incoming import KvFetch
from services.engine.counters import PREFIX_FETCHES
from services.engine.formation import FormationPart
from services.engine.kv_moves import Brought, KvMoves


async def brought_from(
    kv: KvMoves,
    formation: FormationPart,
    fetch: KvFetch,
    holder: PrefixHolder,
    clock: Callable[[], float],
) -> Brought:
    """What comes of a prompt's beginning from who holds it, within the time that it is worth."""
    began_s, limit_s = clock(), fetch.source.fetch_s
    offered, source = await kv.offer(formation, holder, fetch.names, limit_s)
    left_s, blocks = limit_s - (clock() - began_s), fetch.blocks[:offered]
    brought = Brought(0)
    if blocks and left_s > 0:
        source = replace(source, fetch_s=left_s)
        brought = await kv.fetch(formation, replace(fetch, source=source, blocks=blocks))
    whole = brought.count == len(fetch.blocks)
    outcome = "whole" if whole else "part" if brought.count else "missed"
    PREFIX_FETCHES.labels(outcome).inc()
    return brought
