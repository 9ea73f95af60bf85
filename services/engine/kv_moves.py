"""What a head asks of stages about blocks: its own formation's, and other formations' heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.exchange import KvMember, KvSource, PrefixHolder
from services.engine.core.copying import Heir
from services.engine.core.incoming import KvFetch, NamedBlock
from services.engine.formation import FormationPart


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of blocks that an heir was to keep."""

    size_bytes: int
    """From process to process."""
    whole: bool
    """All its members keep all of them."""
    full: bool
    """One of them had no room for more."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What a fetch came to."""

    count: int | None
    """So many blocks, from the first on, every stage has filled; None: some stage did not answer,
    and may fill them yet."""
    size_bytes: int = 0
    """From process to process."""
    rounded: bool = False
    """Some of them were rounded on their way, at some stage."""


class KvMoves(Protocol):
    """What a head asks of stages, when generations or their beginnings move."""

    async def keep(
        self,
        formation: FormationPart,
        number: int,
        blocks: Sequence[NamedBlock],
        *,
        last: bool = False,
        keep_s: float = 0.0,
        offered: bool = False,
    ) -> int | None:
        """Every stage keeps what it holds of these, for so long at least, those first that come
        first; behind the last ones nothing more. What is offered to another pipeline it keeps for
        so long and no longer. So many every stage has room for; None: some stage did not answer,
        and may be at it yet."""
        ...

    async def store(
        self,
        formation: FormationPart,
        source: KvSource,
        heir: Sequence[KvMember],
        names: Sequence[bytes],
        limit_s: float,
        places: Mapping[bytes, int],
    ) -> Stored:
        """All members of the heir keep what the source keeps of these, of their layers; who has no
        formation yet lays them into the same `places` of a cache, if any are said."""
        ...

    async def cache(
        self, heir: Heir, source: KvSource, chains: Sequence[Sequence[bytes]], limit_s: float
    ) -> Sequence[int]:
        """The formation that the heir is has these lie in its caches: so many of each chain, from
        its first on."""
        ...

    async def offer(
        self,
        formation: FormationPart,
        holder: PrefixHolder,
        names: Sequence[bytes],
        limit_s: float,
    ) -> tuple[int, KvSource]:
        """The holder's stages keep what they have of these for the formation: so many, from the
        first on, and who keeps them."""
        ...

    async def fetch(self, formation: FormationPart, fetch: KvFetch) -> Brought:
        """Every stage fills these, as far as they come in the source's time."""
        ...

    async def end(self, formation: FormationPart, number: int) -> bool:
        """No stage does anything to blocks any more that it was asked by this number; False: one
        did not say so."""
        ...
