"""Which pipelines have computed a prompt's beginning, as their heads told it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.exchange import PrefixHolder, PrefixNews, Route
from services.common.generation import GenerationRequest
from services.common.prefix import chain_of, told

MAX_HELD = 1 << 17
"""Blocks of one head that are remembered; heads tell half as many."""


LEAST_MORE = 128
"""Positions that another pipeline must have beyond those of the one that a prompt goes to: less is
computed sooner than asked for."""


def holder_of(
    found: Mapping[str, int], route: Route, routes: Sequence[Route]
) -> PrefixHolder | None:
    """Which of these pipelines has most of a prompt computed, as `found` tells, of which the one
    that it goes to lacks enough; None: none has."""
    most = max(routes, key=lambda one: found.get(one.formation_id, 0), default=route)
    positions = found.get(most.formation_id, 0)
    if positions - found.get(route.formation_id, 0) < LEAST_MORE:
        return None
    return PrefixHolder(most.address, most.formation_id, positions)


@dataclass(slots=True)
class _Held:
    block_positions: int
    hashes: set[int] = field(default_factory=set)


class PrefixIndex:
    """Blocks by the formation that has them. Late news cost a detour, or a prompt computed again;
    never an id."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def told(self, formation_id: str, news: PrefixNews) -> None:
        """A head told what it holds, or what changed."""
        held = self._held.get(formation_id)
        if held is None or news.whole:
            held = self._held[formation_id] = _Held(news.block_positions)
        held.hashes.difference_update(news.removed)
        held.hashes.update(news.added[: max(0, MAX_HELD - len(held.hashes))])

    def keep(self, formation_ids: Iterable[str]) -> None:
        """The other formations are gone, and what they held with them."""
        kept = set(formation_ids)
        self._held = {name: held for name, held in self._held.items() if name in kept}

    def found(self, request: GenerationRequest) -> dict[str, int]:
        """How many positions of the prompt each formation has that has any. No more is hashed than
        some formation holds, and a block."""
        by_size: dict[int, list[str]] = defaultdict(list)
        for formation_id, held in self._held.items():
            by_size[held.block_positions].append(formation_id)
        found: dict[str, int] = {}
        for block_positions, holders in by_size.items():
            chain = enumerate(chain_of(request, block_positions), start=1)
            for count, block_hash in chain:
                name = told(block_hash)
                holders = [holder for holder in holders if name in self._held[holder].hashes]
                if not holders:
                    break
                found.update(dict.fromkeys(holders, count * block_positions))
        return found
