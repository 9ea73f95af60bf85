"""Blocks that may be rounded on their way, between two exchanges of which either may be older."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import KvMember, KvSource
from services.common.generation import GenerationRequest, LayerRange, ModelRef, Sampling
from services.common.prefix import chain_of
from services.engine.core.contents import Contents
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout, KvPiece
from services.engine.kv_exchange import KvExchange
from services.engine.kv_gatherer import KvLimits, Wanted
from services.engine.kv_rounding import rounded, widened

LAYERS, BLOCKS = 4, 3
LAYOUT = KvLayout("rows", 2, 2 * 16 * 8 * 4, 16, "exact-tiny", "fp32")
LIMITS = KvLimits(keep_s=600.0, silent_s=30.0)
REQUEST = GenerationRequest(
    "g", ModelRef("m", "d"), tuple(range(BLOCKS * 16)), Sampling(1, kv_int8=True)
)
OWN = list(chain_of(REQUEST, 16))
SHARED = list(chain_of(replace(REQUEST, sampling=Sampling(1)), 16))
SOURCE = KvSource("f", (KvMember("a:1", "old", LayerRange(0, LAYERS)),))
NARROW = LAYOUT.rounded
assert NARROW is not None


def truth(block: int, layers: range = range(LAYERS)) -> bytes:
    chance = np.random.default_rng(block)
    every = chance.standard_normal((LAYERS, LAYOUT.layer_bytes // 4), dtype=np.float32)
    return every[layers.start : layers.stop].tobytes()


def as_rounded(data: bytes) -> bytes:
    """What it is when it comes rounded."""
    small = rounded(LAYOUT, data)
    assert small is not None
    return widened(LAYOUT, small)


@dataclass
class Place:
    """A stage in a formation, whose cache is bytes."""

    layers: range = range(LAYERS)
    id: str = "f"
    kv_layout: KvLayout = LAYOUT
    contents: Contents = field(default_factory=Contents)
    cache: dict[int, bytes] = field(default_factory=dict)

    def keeps(self, number: int, blocks: Iterable[NamedBlock]) -> None:
        self.contents.note(blocks)

    async def export_blocks(self, number: int, blocks: Sequence[int]) -> list[bytes]:
        return [self.cache[block] for block in blocks]

    async def import_blocks(self, number: int, blocks: Sequence[int], data: Sequence[Any]) -> None:
        self.contents.written(blocks)
        self.cache.update(zip(blocks, map(bytes, data), strict=True))


def named(names: Sequence[bytes]) -> list[NamedBlock]:
    return [(name, index) for index, name in enumerate(names)]


async def kept(*, blocks: dict[int, bytes] | None = None) -> KvExchange:
    """Both kinds of names, of a formation that has ended."""
    exchange = KvExchange("old", LIMITS, unread, time.monotonic)
    held = blocks or {index: truth(index) for index in range(BLOCKS)}
    for names in (OWN, SHARED):
        place: Any = Place(cache=held)
        await exchange.keep(place, 1, named(names), last=True)
    return exchange


def unread(member: KvMember, wanted: Wanted, s: float) -> AsyncGenerator[KvPiece | None, None]:
    raise AssertionError("nobody was to be asked")


class Reader:
    """Reads of an exchange, and counts; an older one knows no other layout than its own."""

    def __init__(self, exchange: KvExchange, *, older: bool = False) -> None:
        self._exchange, self._older = exchange, older
        self.bytes = 0
        self.layouts: list[str] = []

    async def __call__(
        self, member: KvMember, wanted: Wanted, limit_s: float
    ) -> AsyncGenerator[KvPiece | None, None]:
        self.layouts.append(wanted.layout_name)
        if self._older and wanted.layout_name != LAYOUT.name:
            raise FailedPrecondition("blocks lie otherwise here", field="layout")
        async for piece in self._exchange.offered(wanted, lambda _: None):
            assert piece is not None
            self.bytes += len(piece.data)
            yield piece


async def fetched(reader: Any, names: Sequence[bytes], place: Any = None) -> tuple[Any, Any, Any]:
    exchange = KvExchange("new", LIMITS, reader, time.monotonic)
    place = place or Place()
    filled = await exchange.fetch(place, 1, SOURCE, named(names), 60.0)
    return filled, place, exchange


async def test_what_may_be_rounded_comes_in_a_quarter_of_the_bytes_and_all_else_as_it_is() -> None:
    exchange, whole = await kept(), BLOCKS * LAYOUT.size_bytes(range(LAYERS))
    for names, share, right in ((OWN, 0.26, as_rounded), (SHARED, 1.0, bytes)):
        reader = Reader(exchange)
        filled, place, _ = await fetched(reader, names)
        assert (filled.blocks, filled.rounded) == (BLOCKS, names is OWN)
        assert filled.fetched_bytes == reader.bytes == pytest.approx(share * whole, rel=0.01)
        assert place.cache == {index: right(truth(index)) for index in range(BLOCKS)}


async def test_of_two_kinds_in_one_fetch_each_comes_as_it_may() -> None:
    mixed = [OWN[0], SHARED[1], OWN[2]]
    filled, place, _ = await fetched(Reader(await kept()), mixed)
    assert (filled.blocks, filled.rounded) == (BLOCKS, True)
    assert place.cache[1] == truth(1)
    assert [place.cache[index] for index in (0, 2)] == [as_rounded(truth(i)) for i in (0, 2)]


async def test_an_engine_that_does_not_know_the_layout_is_asked_for_blocks_as_they_are() -> None:
    reader = Reader(await kept(), older=True)
    filled, place, _ = await fetched(reader, OWN)
    assert (filled.blocks, filled.rounded) == (BLOCKS, False)
    assert place.cache == {index: truth(index) for index in range(BLOCKS)}
    assert set(reader.layouts) == {NARROW.name, LAYOUT.name}


async def test_who_says_nothing_is_not_waited_for_twice() -> None:
    asked = 0

    async def silent(*_: Any) -> AsyncGenerator[KvPiece | None, None]:
        nonlocal asked
        asked += 1
        raise TimeoutError
        yield None

    filled, _, _ = await fetched(silent, OWN)
    assert (filled.blocks, filled.rounded) == (0, False)
    assert asked == LIMITS.flows


async def test_what_cannot_be_rounded_comes_as_it_is_and_the_others_do_not() -> None:
    odd = bytearray(truth(1))
    odd[:4] = np.float32(inf).tobytes()
    held = {0: truth(0), 1: bytes(odd), 2: truth(2)}
    filled, place, _ = await fetched(Reader(await kept(blocks=held)), OWN)
    assert (filled.blocks, filled.rounded) == (BLOCKS, True)
    assert place.cache == {0: as_rounded(truth(0)), 1: bytes(odd), 2: as_rounded(truth(2))}


async def test_what_is_shared_is_given_to_nobody_rounded() -> None:
    exchange = await kept()
    wanted = Wanted("f", NARROW.name, range(LAYERS), [*OWN, SHARED[0]], 0.0)
    with pytest.raises(InvalidArgument) as refused:
        await anext(exchange.offered(wanted, lambda _: None))
    assert refused.value.field == "names"


async def test_who_keeps_blocks_for_others_keeps_them_as_they_came() -> None:
    """What was rounded once says so wherever it goes, and is never taken for what was computed."""
    heir = KvExchange("new", LIMITS, Reader(await kept()), time.monotonic)
    stored = await heir.store(SOURCE, LAYOUT, range(LAYERS), [*OWN, *SHARED], 60.0)
    assert stored.blocks == 2 * BLOCKS
    narrow, wide = NARROW.size_bytes(range(LAYERS)), LAYOUT.size_bytes(range(LAYERS))
    assert heir.shelf.used_bytes == BLOCKS * (narrow + wide)
    again = await heir.store(SOURCE, LAYOUT, range(LAYERS), [*OWN, *SHARED], 60.0)
    assert (again.blocks, again.fetched_bytes) == (2 * BLOCKS, 0)
    heir.shelf.complete("f", LAYOUT, time.monotonic())
    asked = Wanted("f", LAYOUT.name, range(LAYERS), OWN, 0.0)
    assert [piece async for piece in heir.offered(asked, lambda _: None)] == []
    place: Any = Place()
    filled = await heir.fetch(place, 1, KvSource("f", ()), named(OWN), 60.0)
    assert (filled.blocks, filled.rounded, filled.fetched_bytes) == (BLOCKS, True, 0)
    assert place.cache == {index: as_rounded(truth(index)) for index in range(BLOCKS)}


async def test_what_a_process_has_itself_is_not_rounded() -> None:
    exchange, place = await kept(), Place()
    filled = await exchange.fetch(place, 1, SOURCE, named(OWN), 60.0)  # type: ignore[arg-type]
    assert (filled.blocks, filled.rounded) == (BLOCKS, False)
    assert place.cache == {index: truth(index) for index in range(BLOCKS)}


async def test_where_some_layers_are_here_the_whole_block_is_rounded() -> None:
    reader = Reader(await kept())
    exchange = KvExchange("new", LIMITS, reader, time.monotonic)
    front: Any = Place(layers=range(2), cache={i: truth(i, range(2)) for i in range(BLOCKS)})
    await exchange.keep(front, 1, named(OWN), last=True)
    place: Any = Place()
    members = (KvMember("b:1", "new", LayerRange(0, 2)), KvMember("a:1", "old", LayerRange(2, 4)))
    filled = await exchange.fetch(place, 1, KvSource("f", members), named(OWN), 60.0)
    assert (filled.blocks, filled.rounded) == (BLOCKS, True)
    assert place.cache == {index: as_rounded(truth(index)) for index in range(BLOCKS)}
    assert filled.fetched_bytes == reader.bytes == BLOCKS * NARROW.size_bytes(range(2))


async def test_what_lies_in_its_place_rounded_is_told_again_and_not_fetched() -> None:
    _, place, exchange = await fetched(Reader(await kept()), OWN)
    place.contents.note(named(OWN))
    again = await exchange.fetch(place, 2, KvSource("f", ()), named(OWN), 60.0)
    assert (again.blocks, again.rounded, again.fetched_bytes) == (BLOCKS, True, 0)


async def test_what_is_laid_into_a_cache_ahead_is_known_to_be_rounded() -> None:
    heir = KvExchange("new", LIMITS, Reader(await kept()), time.monotonic)
    await heir.store(SOURCE, LAYOUT, range(LAYERS), [*OWN, *SHARED[:1]], 60.0)
    laid: dict[int, bytes] = {}
    contents = Contents()

    async def lay(blocks: Sequence[NamedBlock], data: Sequence[Any]) -> bool:
        laid.update(zip((block for _, block in blocks), map(bytes, data), strict=True))
        contents.note(blocks)
        return True

    cache: Any = SimpleNamespace(contents=contents, lay=lay)
    blocks = [*named(OWN), (SHARED[0], BLOCKS)]
    await heir.lay(cache, LAYOUT, range(LAYERS), blocks)
    assert laid == {i: as_rounded(truth(i)) for i in range(BLOCKS)} | {BLOCKS: truth(0)}
    assert list(map(contents.is_rounded, blocks)) == [True] * BLOCKS + [False]


async def test_where_nobody_knows_what_elements_are_nothing_is_rounded() -> None:
    exchange = KvExchange("old", LIMITS, unread, time.monotonic)
    layout = replace(LAYOUT, element="")
    held = {index: truth(index) for index in range(BLOCKS)}
    place: Any = Place(cache=held, kv_layout=layout)
    await exchange.keep(place, 1, named(OWN), last=True)
    reader = Reader(exchange)
    filled, place, _ = await fetched(reader, OWN, Place(kv_layout=layout))
    assert (filled.blocks, filled.rounded, place.cache) == (BLOCKS, False, held)
    assert set(reader.layouts) == {layout.name}
