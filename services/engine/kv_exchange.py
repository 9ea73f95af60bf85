"""A stage's part in moving blocks: it keeps its own, fetches what it lacks, and lets others read.

Whatever goes wrong with a block, or takes too long, is a block that is not there: who wanted it
computes it. Only the caches' own stages write to them, and no later than they have answered.

A block that came rounded is kept so on a shelf, and goes widened into a cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import KvSource
from services.common.prefix import owner_of
from services.common.wire import LONGEST_FETCH_S
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of
from services.engine.core.rate import Rate
from services.engine.core.shelf import Shelf
from services.engine.formation import FormationPart
from services.engine.kv_gatherer import KvGatherer, KvLimits, Read, Wanted, rounded_of, wide
from services.engine.kv_rounding import kept_rounded
from services.engine.stage_cache import StageCache

MAX_NAMES = 1 << 16
"""Blocks that are asked for in one call."""
PIECE_BYTES = 2 << 20
"""Of a piece on the wire, at most, where a layer is no larger than that."""
KEPT_AT_ONCE = 16
"""Blocks that are copied out of a cache between two steps."""
FILLED_AT_ONCE = 16
"""Blocks that are copied into a cache between two steps."""
OFFERED_SHARE = 0.5
"""Of the shelf, for what is offered to pipelines: the rest stays for generations that move."""
LOOK_S = 0.02
"""Who waits for blocks that may come looks this often."""
STILL_S = 0.25
"""Who is waited for, and waits himself, says so this often."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What a fetch came to."""

    blocks: int = 0
    """From the first on."""
    fetched_bytes: int = 0
    full: bool = False
    """There was no room for the others."""
    rounded: bool = False
    """Some of them were."""


class KvExchange:
    """Of one process."""

    def __init__(
        self, incarnation: str, limits: KvLimits, read: Read, clock: Callable[[], float]
    ) -> None:
        self.filled_blocks = 0
        """Since the process started."""
        self.fetched_bytes = 0
        """From other processes, for its caches and its shelf."""
        self.shelf = Shelf(limits.shelf_bytes, limits.keep_s)
        self.incarnation = incarnation
        self._gatherer = KvGatherer(incarnation, limits, self.shelf, read, clock)
        self._clock = clock
        self._rate = Rate(limits.bytes_per_s)
        self._keeping = 0
        """Calls that are copying what stages hold."""

    @property
    def keeps_for_s(self) -> float:
        """How long yet there is something that others may want."""
        return self.shelf.keeps_for_s(self._clock())

    def tick(self) -> None:
        """Time has passed: what is kept no more gives its memory back."""
        self.shelf.forget(self._clock())

    async def keep(
        self,
        formation: FormationPart,
        number: int,
        blocks: Sequence[NamedBlock],
        *,
        last: bool,
        keep_s: float = 0.0,
        offered: bool = False,
    ) -> int:
        """Copies what the stage holds of blocks to the shelf, but of those that it keeps already,
        and keeps it for so long at least, or just so long what is offered to another pipeline; how
        many it keeps from the first on, for there may be no room. Raises what
        `FormationPart.export_blocks` does."""
        layout, layers = formation.kv_layout, formation.layers
        size_bytes = layout.size_bytes(layers)
        self._keeping += 1
        try:
            if not size_bytes:
                return 0
            names = [name for name, _ in blocks]
            least_s = keep_s if offered else max(keep_s, self.shelf.keep_s)
            lacking = self._lacking([layout], layers, names, least_s)
            share = OFFERED_SHARE if offered else 1.0
            room = self.shelf.room(size_bytes, self._clock(), share)
            for start in range(0, min(room, len(lacking)), KEPT_AT_ONCE):
                part = lacking[start : min(start + KEPT_AT_ONCE, room)]
                held = await formation.export_blocks(number, [blocks[i][1] for i in part])
                now_s = self._clock()  # others may have taken of the room meanwhile
                for index, data in zip(part, held, strict=True):
                    name = names[index]
                    if not self.shelf.put(layout, name, layers, data, now_s, least_s, share):
                        return index
            formation.keeps(number, blocks)
            return lacking[room] if room < len(lacking) else len(blocks)
        finally:
            self._keeping -= 1
            if last:
                keep_s = max(keep_s, self.shelf.keep_s)
                self.shelf.complete(formation.id, layout, self._clock(), keep_s)

    def _lacking(
        self,
        layouts: Iterable[KvLayout],
        layers: range,
        names: Sequence[bytes],
        keep_s: float | None = None,
    ) -> list[int]:
        """Which of these are kept in none of the layouts; those that are, are kept as long as if
        they came now."""
        now_s, found = self._clock(), [layout.name for layout in layouts]
        return [
            index
            for index, name in enumerate(names)
            if not any(self.shelf.renew(one, name, layers, now_s, keep_s) for one in found)
        ]

    async def offered(
        self, wanted: Wanted, living: Callable[[str], KvLayout | None]
    ) -> AsyncGenerator[KvPiece | None, None]:
        """What is kept of blocks, piece by piece; waits for what may come, and says so while
        something is being copied. `living` tells the layout of a formation that the process is in.
        Raises FailedPrecondition for one that is not known here, and for another layout,
        InvalidArgument for too many blocks, and for those that are not to be rounded."""
        if len(wanted.names) > MAX_NAMES:
            raise InvalidArgument(f"at most {MAX_NAMES} blocks", field="names")
        until_s = self._clock() + min(wanted.wait_s, LONGEST_FETCH_S)
        left, said_s = list(wanted.names), self._clock()
        while left:
            layout, complete = self._check(wanted, living)
            lacking = []
            for name in left:
                parts = await self._kept_of(layout, wanted, name)
                if not parts and parts is not None:
                    lacking.append(name)
                for layers, data in parts or ():
                    for piece in _pieces(wanted, name, layers, data):
                        await asyncio.sleep(self._rate.wait_s(len(piece.data), self._clock()))
                        yield piece
                        said_s = self._clock()
            left = lacking
            if complete or self._clock() >= until_s:
                return
            if self._keeping and self._clock() - said_s >= STILL_S:
                yield None
                said_s = self._clock()
            await asyncio.sleep(LOOK_S)

    async def _kept_of(
        self, layout: KvLayout, wanted: Wanted, name: bytes
    ) -> Sequence[tuple[range, bytes | memoryview]] | None:
        """Of a block of a formation with this layout, as it is asked for; None: it never will be
        had so."""
        if wanted.layout_name == layout.name:
            return list(self.shelf.find(layout.name, name, wanted.layers, self._clock()))
        return await kept_rounded(self.shelf, layout, name, wanted.layers, self._clock())

    def _check(
        self, wanted: Wanted, living: Callable[[str], KvLayout | None]
    ) -> tuple[KvLayout, bool]:
        """How the formation's blocks lie, and whether all there will be is there."""
        kept = self.shelf.layout_of(wanted.formation_id, self._clock())
        layout = kept or living(wanted.formation_id)
        if layout is None:
            raise FailedPrecondition("nothing is kept of this formation", field="formation_id")
        narrow = layout.rounded
        if wanted.layout_name != layout.name:
            if narrow is None or wanted.layout_name != narrow.name:
                raise FailedPrecondition(f"blocks lie as {layout.name} here", field="layout")
            if not all(map(owner_of, wanted.names)):
                raise InvalidArgument("what is shared is never rounded", field="names")
        return layout, kept is not None

    async def fetch(
        self,
        formation: FormationPart,
        number: int,
        source: KvSource,
        blocks: Sequence[NamedBlock],
        limit_s: float,
        *,
        waits: bool = True,
    ) -> Filled:
        """Fills blocks of the stage's cache with what is kept here and elsewhere, as far as it
        comes within the limit, or is there already where nothing `waits`, but for those that hold
        it already. Raises what `FormationPart.import_blocks` does."""
        came = fetched_bytes = 0
        contents = formation.contents
        lacking = [index for index, block in enumerate(blocks) if block not in contents]
        names = [blocks[index][0] for index in lacking]
        rounded = any(map(contents.is_rounded, blocks))
        layout, layers = formation.kv_layout, formation.layers
        gathered = self._gatherer.gathered(source, layout, layers, names, limit_s, waits=waits)
        async with aclosing(gathered):
            async for part in gathered:
                places = [blocks[index][1] for index in lacking[came : came + len(part.blocks)]]
                for start in range(0, len(places), FILLED_AT_ONCE):
                    end = start + FILLED_AT_ONCE
                    some, own = part.blocks[start:end], places[start:end]
                    await formation.import_blocks(number, own, await wide(layout, some))
                    contents.note_rounded(rounded_of(own, some))
                came += len(places)
                fetched_bytes += part.fetched_bytes
                rounded = rounded or any(one.rounded for one in part.blocks)
        filled = lacking[came] if came < len(lacking) else len(blocks)
        self.filled_blocks += filled
        self.fetched_bytes += fetched_bytes
        return Filled(filled, fetched_bytes, rounded=rounded)

    async def lay(
        self, cache: StageCache, layout: KvLayout, layers: range, blocks: Sequence[NamedBlock]
    ) -> None:
        """Has what is kept here of blocks lie in a cache that no formation has yet, as far as it is
        in one piece. Raises what `StageCache.lay` does."""
        lacking = [block for block in blocks if block not in cache.contents]
        for start in range(0, len(lacking), FILLED_AT_ONCE):
            part = lacking[start : start + FILLED_AT_ONCE]
            here = await self._gatherer.kept(layout, layers, [name for name, _ in part])
            own = part[: len(here)]
            if not here or not await cache.lay(own, await wide(layout, here)):
                return
            cache.contents.note_rounded(rounded_of([block for _, block in own], here))
            if len(here) < len(part):
                return

    async def store(
        self,
        source: KvSource,
        layout: KvLayout,
        layers: range,
        names: Sequence[bytes],
        limit_s: float,
    ) -> Filled:
        """Keeps what others keep of blocks, as far as it comes within the limit and there is room.
        Raises InvalidArgument for too many blocks."""
        if len(names) > MAX_NAMES:
            raise InvalidArgument(f"at most {MAX_NAMES} blocks", field="names")
        narrow = layout.rounded
        lacking = self._lacking((layout, narrow) if narrow else (layout,), layers, names)
        wanted = [names[index] for index in lacking]
        stored = fetched_bytes = 0
        gathered = self._gatherer.gathered(source, layout, layers, wanted, limit_s, waits=False)
        async with aclosing(gathered):
            async for part in gathered:
                fetched_bytes += part.fetched_bytes
                self.fetched_bytes += part.fetched_bytes
                for one in part.blocks:
                    lies = narrow if one.rounded and narrow else layout
                    if not self.shelf.put(lies, wanted[stored], layers, one.data, self._clock()):
                        return Filled(lacking[stored], fetched_bytes, full=True)
                    stored += 1
        whole = stored == len(wanted)
        return Filled(len(names) if whole else lacking[stored], fetched_bytes)


def _pieces(
    wanted: Wanted, name: bytes, layers: range, data: bytes | memoryview
) -> Iterator[KvPiece]:
    layer_bytes = len(data) // len(layers)
    at_once = max(1, PIECE_BYTES // layer_bytes)
    for first in range(0, len(layers), at_once):
        some = layers[first : first + at_once]
        part = data[first * layer_bytes : (first + len(some)) * layer_bytes]
        yield KvPiece(name, some, part, checksum_of(wanted.layout_name, name, some, part))
