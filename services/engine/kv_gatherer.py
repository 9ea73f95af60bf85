"""What a process lacks of blocks, as it comes: from its own shelf, and from all who keep some.

Of what may be rounded as much comes rounded as can be. What does not, for whoever was asked does
not know that layout or cannot round it, is asked for as it was computed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.common.errors import ShuntError
from services.common.exchange import KvMember, KvSource
from services.common.prefix import owner_of
from services.engine.core.gathering import Gathering
from services.engine.core.kv_layout import KvLayout, KvPiece
from services.engine.core.shelf import Shelf
from services.engine.kv_rounding import kept_rounded, widened

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KvLimits:
    """Sizes and timings, from the settings."""

    shelf_bytes: int = 1 << 30
    keep_s: float = 15.0
    """What is kept is kept this long."""
    silent_s: float = 1.0
    """Who is asked for blocks and says nothing for this long has none."""
    flows: int = 2
    """Connections over which a stage reads from one other."""
    window_bytes: int = 64 << 20
    """Bytes of blocks that a fetch holds at a time."""
    bytes_per_s: float = 0.0
    """Of the link, for what others read here; 0: as many as there are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one stage asks another for."""

    formation_id: str
    layout_name: str
    layers: range
    names: Sequence[bytes]
    wait_s: float


@dataclass(frozen=True, slots=True)
class Came:
    """A block of a fetch, as it lies in one of the two layouts."""

    data: memoryview
    rounded: bool

    def wide(self, layout: KvLayout) -> bytes | memoryview:
        """As it goes into a cache of this layout."""
        return widened(layout, self.data) if self.rounded else self.data


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of a fetch."""

    blocks: list[Came]
    fetched_bytes: int


Read = Callable[[KvMember, Wanted, float], AsyncGenerator[KvPiece | None, None]]
"""Pieces as another process sends them over a connection of its own, for so many seconds at most;
None where it has none yet. Raises ShuntError."""


class KvGatherer:
    """Of one process."""

    def __init__(
        self,
        incarnation: str,
        limits: KvLimits,
        shelf: Shelf,
        read: Read,
        clock: Callable[[], float],
    ) -> None:
        self._incarnation, self._limits, self._shelf = incarnation, limits, shelf
        self._read = read
        self._clock = clock

    async def gathered(
        self,
        source: KvSource,
        layout: KvLayout,
        layers: range,
        names: Sequence[bytes],
        limit_s: float,
        *,
        waits: bool,
    ) -> AsyncGenerator[Part, None]:
        """Blocks in order, as many at a time as a fetch may hold, up to the first that does not
        come within the limit, or is not there where nothing `waits`."""
        until_s, size_bytes = self._clock() + limit_s, layout.size_bytes(layers)
        if not size_bytes:
            return
        at_once = max(1, self._limits.window_bytes // size_bytes)
        for start in range(0, len(names), at_once):
            part = names[start : start + at_once]
            gathering = Gathering(layout, layers, part)
            silent = set[str]()
            own = self._put_own(gathering)
            rounded = await self._rounded(gathering, source, until_s, silent, waits=waits)
            left_s = until_s - self._clock()
            if gathering.whole < len(part) and left_s > 0:
                wait_s = left_s if waits else 0.0
                await self._gather(gathering, source, left_s, wait_s, silent)
            self._tell_refused(gathering, source)
            whole = gathering.whole
            blocks = _blocks_of(gathering, whole, rounded)
            own |= rounded
            fetched_bytes = sum(
                max(0, len(one.data) - own.get(name, 0))
                for name, one in zip(part, blocks, strict=False)
            )
            yield Part(blocks, fetched_bytes)
            if whole < len(part):
                return

    async def kept(self, layout: KvLayout, layers: range, names: Sequence[bytes]) -> list[Came]:
        """Blocks of which all is here, in order up to the first that is not."""
        gathering = Gathering(layout, layers, names)
        self._put_own(gathering)
        rounded = await self._rounded(gathering, None, 0.0, set(), waits=False)
        return _blocks_of(gathering, gathering.whole, rounded)

    async def _rounded(
        self,
        gathering: Gathering,
        source: KvSource | None,
        until_s: float,
        silent: set[str],
        *,
        waits: bool,
    ) -> dict[bytes, int]:
        """Puts what lacks and may be rounded, as far as it comes so from the source, or without one
        is here; of each such block how many bytes were here. Who is `silent` is told by that."""
        layout, layers = gathering.layout, gathering.layers
        narrow = layout.rounded
        names = [name for name in gathering.lacking(layers) if owner_of(name)]
        if narrow is None or not names:
            return {}
        own = dict[bytes, int]()
        small = Gathering(narrow, layers, names)
        for name in names:
            kept = await kept_rounded(self._shelf, layout, name, layers, self._clock())
            for there, data in kept or ():
                small.put(name, there, data)
                own[name] = own.get(name, 0) + len(data)
        left_s = until_s - self._clock()
        if source is not None:
            if small.whole < len(names) and left_s > 0:
                wait_s = left_s if waits else 0.0
                await self._gather(small, source, left_s, wait_s, silent)
            self._tell_refused(small, source)
        lacking = small.lacking(layers)
        came = [name for name in names if name not in lacking]
        for name in came:
            gathering.put(name, layers, small.block(name))
        return {name: own.get(name, 0) for name in came}

    def _put_own(self, gathering: Gathering) -> dict[bytes, int]:
        """What this process keeps itself; how many bytes of each block."""
        own = dict[bytes, int]()
        layout, layers = gathering.layout, gathering.layers
        for name in gathering.lacking(layers):
            for there, data in self._shelf.find(layout.name, name, layers, self._clock()):
                gathering.put(name, there, data)
                own[name] = own.get(name, 0) + len(data)
        return own

    async def _gather(
        self,
        gathering: Gathering,
        source: KvSource,
        left_s: float,
        wait_s: float,
        silent: set[str],
    ) -> None:
        """From all who had some of the layers and are not `silent`, over several connections each;
        what comes late does not come."""
        reads, layers = [], gathering.layers
        for member in source.members:
            if member.incarnation == self._incarnation or member.incarnation in silent:
                continue
            start, end = member.layers.start, member.layers.end
            common = range(max(layers.start, start), min(layers.stop, end))
            names = gathering.lacking(common) if common else []
            for flow in range(min(self._limits.flows, len(names))):
                own = names[flow :: self._limits.flows]
                name = gathering.layout.name
                wanted = Wanted(source.formation_id, name, common, own, wait_s)
                reads.append(self._take(gathering, member, wanted, left_s, silent))
        await asyncio.gather(*reads)

    async def _take(
        self,
        gathering: Gathering,
        member: KvMember,
        wanted: Wanted,
        left_s: float,
        silent: set[str],
    ) -> None:
        silent_s = self._limits.silent_s
        try:
            async with (
                asyncio.timeout(left_s),
                aclosing(self._read(member, wanted, left_s)) as told,
            ):
                while True:
                    async with asyncio.timeout(silent_s):
                        piece = await anext(told)
                    if piece is not None:
                        gathering.take(piece)
        except StopAsyncIteration:
            return
        except TimeoutError:
            silent.add(member.incarnation)
            _log.warning("blocks do not come", extra={"address": member.address})
        except ShuntError as error:
            told_of = {"address": member.address, "why": error.message}
            _log.warning("blocks are not had", extra=told_of)

    @staticmethod
    def _tell_refused(gathering: Gathering, source: KvSource) -> None:
        if gathering.refused:
            told = {"pieces": gathering.refused, "formation_id": source.formation_id}
            _log.warning("blocks were not what they should be", extra=told)


async def wide(layout: KvLayout, blocks: Sequence[Came]) -> list[bytes | memoryview]:
    """As they go into a cache; others are served meanwhile."""
    if not any(one.rounded for one in blocks):
        return [one.data for one in blocks]
    return await asyncio.to_thread(lambda: [one.wide(layout) for one in blocks])


def _blocks_of(gathering: Gathering, count: int, rounded: Container[bytes]) -> list[Came]:
    """The first so many, of which some are rounded."""
    return [Came(data, name in rounded) for name, data in gathering.blocks(count)]


def rounded_of(places: Sequence[int], blocks: Sequence[Came]) -> list[int]:
    """Where those lie that came rounded."""
    return [place for place, one in zip(places, blocks, strict=True) if one.rounded]
