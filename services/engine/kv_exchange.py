"""A stage's part in moving blocks: it keeps its own, fetches what it lacks, and lets others read.

Whatever goes wrong with a block, or takes too long, is a block that is not there: who wanted it
computes it. Only the caches' own stages write to them, and no later than they have answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidArgument, ShuntError
from services.common.exchange import KvMember, KvSource
from services.common.wire import LONGEST_FETCH_S
from services.engine.core.gathering import Gathering
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of
from services.engine.core.rate import Rate
from services.engine.core.shelf import Shelf
from services.engine.formation import FormationPart
from services.engine.stage_cache import StageCache

_log = logging.getLogger(__name__)

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
class Filled:
    """What a fetch came to."""

    blocks: int = 0
    """From the first on."""
    fetched_bytes: int = 0
    full: bool = False
    """There was no room for the others."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some blocks of a fetch."""

    data: list[memoryview]
    fetched_bytes: int


Read = Callable[[KvMember, Wanted, float], AsyncGenerator[KvPiece | None, None]]
"""Pieces as another process sends them over a connection of its own, for so many seconds at most;
None where it has none yet. Raises ShuntError."""


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
        self._limits = limits
        self._read = read
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
            lacking = self._lacking(layout, layers, names, least_s)
            room = self.shelf.room(size_bytes, self._clock(), OFFERED_SHARE if offered else 1.0)
            for start in range(0, min(room, len(lacking)), KEPT_AT_ONCE):
                part = lacking[start : min(start + KEPT_AT_ONCE, room)]
                held = await formation.export_blocks(number, [blocks[i][1] for i in part])
                for index, data in zip(part, held, strict=True):
                    if not self.shelf.put(
                        layout, names[index], layers, data, self._clock(), least_s
                    ):
                        return index
            formation.keeps(number, blocks)
            return lacking[room] if room < len(lacking) else len(blocks)
        finally:
            self._keeping -= 1
            if last:
                keep_s = max(keep_s, self.shelf.keep_s)
                self.shelf.complete(formation.id, layout.name, self._clock(), keep_s)

    def _lacking(
        self, layout: KvLayout, layers: range, names: Sequence[bytes], keep_s: float | None = None
    ) -> list[int]:
        """Which of these are not kept; those that are, are kept as long as if they came now."""
        now_s = self._clock()
        return [
            index
            for index, name in enumerate(names)
            if not self.shelf.renew(layout.name, name, layers, now_s, keep_s)
        ]

    async def offered(
        self, wanted: Wanted, living: Callable[[str], KvLayout | None]
    ) -> AsyncGenerator[KvPiece | None, None]:
        """What is kept of blocks, piece by piece; waits for what may come, and says so while
        something is being copied. `living` tells the layout of a formation that the process is in.
        Raises FailedPrecondition for one that is not known here, and for another layout,
        InvalidArgument for too many blocks."""
        if len(wanted.names) > MAX_NAMES:
            raise InvalidArgument(f"at most {MAX_NAMES} blocks", field="names")
        until_s = self._clock() + min(wanted.wait_s, LONGEST_FETCH_S)
        left, said_s = list(wanted.names), self._clock()
        while left:
            complete = self._check(wanted, living)
            lacking = []
            for name in left:
                parts = list(
                    self.shelf.find(wanted.layout_name, name, wanted.layers, self._clock())
                )
                if not parts:
                    lacking.append(name)
                for layers, data in parts:
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

    def _check(self, wanted: Wanted, living: Callable[[str], KvLayout | None]) -> bool:
        """Whether all there will be is there."""
        kept = self.shelf.layout_of(wanted.formation_id, self._clock())
        lives = living(wanted.formation_id)
        name = kept or (lives.name if lives is not None else None)
        if name is None:
            raise FailedPrecondition("nothing is kept of this formation", field="formation_id")
        if name != wanted.layout_name:
            raise FailedPrecondition(f"blocks lie as {name} here", field="layout")
        return kept is not None

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
        layout, layers = formation.kv_layout, formation.layers
        gathered = self._gathered(source, layout, layers, names, limit_s, waits=waits)
        async with aclosing(gathered):
            async for part in gathered:
                places = [blocks[index][1] for index in lacking[came : came + len(part.data)]]
                for start in range(0, len(places), FILLED_AT_ONCE):
                    end = start + FILLED_AT_ONCE
                    await formation.import_blocks(number, places[start:end], part.data[start:end])
                came += len(places)
                fetched_bytes += part.fetched_bytes
        filled = lacking[came] if came < len(lacking) else len(blocks)
        self.filled_blocks += filled
        return Filled(filled, fetched_bytes)

    async def lay(
        self, cache: StageCache, layout: KvLayout, layers: range, blocks: Sequence[NamedBlock]
    ) -> None:
        """Has what is kept here of blocks lie in a cache that no formation has yet, as far as it is
        in one piece. Raises what `StageCache.lay` does."""
        lacking = [block for block in blocks if block not in cache.contents]
        for start in range(0, len(lacking), FILLED_AT_ONCE):
            part = lacking[start : start + FILLED_AT_ONCE]
            gathering = Gathering(layout, layers, [name for name, _ in part])
            self._put_own(gathering, layout, layers, [name for name, _ in part])
            whole = gathering.whole
            there = whole and await cache.lay(part[:whole], gathering.data(whole))
            if not there or whole < len(part):
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
        lacking = self._lacking(layout, layers, names)
        wanted = [names[index] for index in lacking]
        stored = fetched_bytes = 0
        gathered = self._gathered(source, layout, layers, wanted, limit_s, waits=False)
        async with aclosing(gathered):
            async for part in gathered:
                fetched_bytes += part.fetched_bytes
                for data in part.data:
                    if not self.shelf.put(layout, wanted[stored], layers, data, self._clock()):
                        return Filled(lacking[stored], fetched_bytes, full=True)
                    stored += 1
        whole = stored == len(wanted)
        return Filled(len(names) if whole else lacking[stored], fetched_bytes)

    async def _gathered(
        self,
        source: KvSource,
        layout: KvLayout,
        layers: range,
        names: Sequence[bytes],
        limit_s: float,
        *,
        waits: bool,
    ) -> AsyncGenerator[_Part, None]:
        """Blocks in order, as many at a time as a fetch may hold, up to the first that does not
        come within the limit, or is not there where nothing `waits`."""
        until_s, size_bytes = self._clock() + limit_s, layout.size_bytes(layers)
        if not size_bytes:
            return
        at_once = max(1, self._limits.window_bytes // size_bytes)
        for start in range(0, len(names), at_once):
            part = names[start : start + at_once]
            gathering = Gathering(layout, layers, part)
            own = self._put_own(gathering, layout, layers, part)
            left_s = until_s - self._clock()
            if gathering.whole < len(part) and left_s > 0:
                await self._gather(gathering, source, left_s, left_s if waits else 0.0)
            whole = gathering.whole
            if gathering.refused:
                told = {"pieces": gathering.refused, "formation_id": source.formation_id}
                _log.warning("blocks were not what they should be", extra=told)
            fetched_bytes = max(0, whole * size_bytes - own)
            self.fetched_bytes += fetched_bytes
            yield _Part(gathering.data(whole), fetched_bytes)
            if whole < len(part):
                return

    def _put_own(
        self, gathering: Gathering, layout: KvLayout, layers: range, names: Sequence[bytes]
    ) -> int:
        """What this process keeps itself; how many bytes of it."""
        size_bytes = 0
        for name in names:
            for own, data in self.shelf.find(layout.name, name, layers, self._clock()):
                gathering.put(name, own, data)
                size_bytes += len(data)
        return size_bytes

    async def _gather(
        self,
        gathering: Gathering,
        source: KvSource,
        left_s: float,
        wait_s: float,
    ) -> None:
        """From all who had some of the layers, over several connections each; what comes late does
        not come."""
        reads, layers = [], gathering.layers
        for member in source.members:
            if member.incarnation == self.incarnation:
                continue
            start, end = member.layers.start, member.layers.end
            common = range(max(layers.start, start), min(layers.stop, end))
            names = gathering.lacking(common) if common else []
            for flow in range(min(self._limits.flows, len(names))):
                own = names[flow :: self._limits.flows]
                name = gathering.layout.name
                wanted = Wanted(source.formation_id, name, common, own, wait_s)
                reads.append(self._take(gathering, member, wanted, left_s))
        await asyncio.gather(*reads)

    async def _take(
        self, gathering: Gathering, member: KvMember, wanted: Wanted, left_s: float
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
            _log.warning("blocks do not come", extra={"address": member.address})
        except ShuntError as error:
            told_of = {"address": member.address, "why": error.message}
            _log.warning("blocks are not had", extra=told_of)


def _pieces(wanted: Wanted, name: bytes, layers: range, data: memoryview) -> Iterator[KvPiece]:
    layer_bytes = len(data) // len(layers)
    at_once = max(1, PIECE_BYTES // layer_bytes)
    for first in range(0, len(layers), at_once):
        some = layers[first : first + at_once]
        part = data[first * layer_bytes : (first + len(some)) * layer_bytes]
        yield KvPiece(name, some, part, checksum_of(wanted.layout_name, name, some, part))
