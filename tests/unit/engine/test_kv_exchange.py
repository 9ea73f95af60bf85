"""Blocks between stages, and a peer that lies: 0 wrong ids, whatever it says."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.common.exchange import KvMember, KvSource
from services.common.generation import LayerRange, Sampling
from services.engine.backend import BLOCK_SIZE, Batch, Hidden, SequenceOpen, SequenceStep
from services.engine.core.contents import Contents
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of
from services.engine.kv_exchange import STILL_S, KvExchange
from services.engine.kv_gatherer import KvLimits, Wanted
from tests.contract.engine.tiny import LAYERS, TinyBackend, expected_ids

TEXTS = [[5 + (7 * i + 13 * n) % 500 for i in range(65)] for n in range(2)]
BLOCKS = 4
NAMES = [[b"text %d block %d" % (text, index) for index in range(BLOCKS)] for text in range(2)]
TABLE = [3, 1, 4, 6, 5]
LIMITS = KvLimits(keep_s=600.0, silent_s=30.0, flows=2)
FAULTS = 1_000


@dataclass
class Place:
    """A stage in a formation, as an exchange sees it."""

    backend: TinyBackend
    id: str = "f"
    contents: Contents = field(default_factory=Contents)

    @property
    def layers(self) -> range:
        return self.backend.layers

    @property
    def kv_layout(self) -> KvLayout:
        return self.backend.kv_layout

    def keeps(self, number: int, blocks: Iterable[NamedBlock]) -> None:
        self.contents.note(blocks)

    async def export_blocks(self, number: int, blocks: Sequence[int]) -> list[bytes]:
        return self.backend.export_blocks(blocks)

    async def import_blocks(self, number: int, blocks: Sequence[int], data: Sequence[Any]) -> None:
        self.backend.import_blocks(blocks, data)


def stage(layers: range = range(LAYERS)) -> Place:
    backend = TinyBackend(layers)
    backend.begin(16)
    return Place(backend)


def compute(place: Place, text: Sequence[int], start: int = 0) -> int:
    """The id behind a text, whose blocks are there up to `start`."""
    opened = SequenceOpen(0, Sampling(1, temperature=0.0), 0, tuple(text))
    step = SequenceStep(0, start, len(text) - start, TABLE, True)
    (sampled,) = place.backend.forward(Batch([step], [opened]), text[start:])  # type: ignore[misc]
    place.backend.forward(Batch([], closes=[0]), [])
    return int(sampled.token_id)


def nobody(
    member: KvMember, wanted: Wanted, limit_s: float
) -> AsyncGenerator[KvPiece | None, None]:
    raise AssertionError("nobody was to be asked")


async def kept(limits: KvLimits = LIMITS) -> KvExchange:
    """Both texts, of a formation that had all layers in one stage."""
    exchange = KvExchange("old", limits, nobody, time.monotonic)
    for names, text in zip(NAMES, TEXTS, strict=True):
        place = stage()
        compute(place, text)
        blocks = list(zip(names, TABLE, strict=False))
        assert await exchange.keep(place, 1, blocks, last=True) == BLOCKS  # type: ignore[arg-type]
    return exchange


SOURCE = KvSource("f", (KvMember("a:1", "old", LayerRange(0, LAYERS)),))

Fault = Callable[[random.Random, KvPiece], list[KvPiece]]


def _flipped(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    data = bytearray(piece.data)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return [replace(piece, data=bytes(data))]


def _short(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    """Its checksum is right."""
    data = bytes(piece.data)[: chance.randrange(len(piece.data))]
    return [_checked(replace(piece, data=data))]


def _long(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    return [_checked(replace(piece, data=bytes(piece.data) + chance.randbytes(64)))]


def _of_another(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    """A block of the other text: under its own name, or with its checksum."""
    index = NAMES[0].index(piece.name)
    other = KvPiece(NAMES[1][index], piece.layers, chance.randbytes(len(piece.data)), b"")
    other = _checked(other)
    return [chance.choice((other, replace(other, name=piece.name)))]


def _of_other_layers(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    start = chance.randrange(LAYERS + 2)
    layers = range(start, start + chance.randrange(4))
    if layers == piece.layers:
        return []
    return [replace(piece, layers=layers)]


def _of_an_older_class(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    layout = replace(stage().kv_layout, numerics_class="exact-older")
    checksum = checksum_of(layout.name, piece.name, piece.layers, piece.data)
    return [replace(piece, checksum=checksum)]


def _twice(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    return [piece, *_flipped(chance, piece), piece]


def _none(chance: random.Random, piece: KvPiece) -> list[KvPiece]:
    return []


CHANGES: dict[str, Fault] = {
    "flipped": _flipped,
    "short": _short,
    "long": _long,
    "another's": _of_another,
    "other layers": _of_other_layers,
    "older": _of_an_older_class,
    "twice": _twice,
    "left out": _none,
}
ENDS = ("dead", "ended", "late")


def _checked(piece: KvPiece) -> KvPiece:
    """With the checksum of what it says."""
    name = stage().kv_layout.name
    checksum = checksum_of(name, piece.name, piece.layers, piece.data)
    return replace(piece, checksum=checksum)


class Liar:
    """A peer that does one thing wrong in each stream; who waits for it, waits in vain."""

    def __init__(self, honest: KvExchange, seed: int) -> None:
        self._honest, self._chance = honest, random.Random(seed)
        self.kind = self._chance.choice((*CHANGES, *ENDS))
        self.faults = 0

    async def read(
        self, member: KvMember, wanted: Wanted, limit_s: float
    ) -> AsyncGenerator[KvPiece | None, None]:
        at, place = self._chance.randrange(len(wanted.names)), 0
        self.faults += 1
        layout = stage().kv_layout
        async for piece in self._honest.offered(wanted, lambda _: layout):
            bad, place = place == at, place + 1
            if not bad:
                yield piece
            elif self.kind in CHANGES:
                for changed in CHANGES[self.kind](self._chance, piece):
                    yield changed
            elif self.kind == "dead":
                raise Unavailable("gone")
            elif self.kind == "ended":
                return
            else:
                await asyncio.Event().wait()


async def test_a_lying_peer_costs_blocks_and_never_an_id() -> None:
    honest = await kept()
    text = TEXTS[0]
    (followed,) = expected_ids(text, 1)
    faults, seen, filled, seed = 0, Counter[str](), Counter[int](), 0
    while faults < FAULTS:
        liar = Liar(honest, seed)
        limits = replace(LIMITS, silent_s=0.02) if liar.kind == "late" else LIMITS
        chance = random.Random(seed)
        cut = chance.randrange(1, LAYERS)
        for layers in (
            (range(cut), range(cut, LAYERS)) if chance.random() < 0.3 else (range(LAYERS),)
        ):
            place = stage(layers)
            exchange = KvExchange("new", limits, liar.read, time.monotonic)
            blocks = list(zip(NAMES[0], TABLE, strict=False))
            came = await exchange.fetch(place, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
            filled[came.blocks] += 1
            truth = stage(layers)
            hidden = text if layers.start == 0 else [_before(token, layers.start) for token in text]
            _run(truth, hidden, text)
            assert place.backend.export_blocks(TABLE[: came.blocks]) == truth.backend.export_blocks(
                TABLE[: came.blocks]
            ), (seed, liar.kind)
            untouched = [TABLE[index] for index in range(came.blocks, BLOCKS)]
            assert all(block not in untouched for _, block, _ in place.backend.cache)
            if layers == range(LAYERS):
                assert compute(place, text, came.blocks * BLOCK_SIZE) == followed
        faults += liar.faults
        seen[liar.kind] += liar.faults
        seed += 1
    assert set(seen) == {*CHANGES, *ENDS}
    assert all(filled[count] > 10 for count in (0, 1, 2, BLOCKS))


def _before(token: int, layer: int) -> int:
    for number in range(layer):
        token = (token * 31 + number + 1) % (1 << 32)
    return token


def _run(place: Place, rows: Sequence[int], text: Sequence[int]) -> None:
    """A whole text through a stage."""
    opened = SequenceOpen(0, Sampling(1), 0, tuple(text))
    step = SequenceStep(0, 0, len(text), TABLE, place.layers.stop == LAYERS)
    data = b"".join(row.to_bytes(4, "little") for row in rows)
    given: Any = rows if place.layers.start == 0 else Hidden("fp32", len(rows), data)
    place.backend.forward(Batch([step], [opened]), given)


async def test_what_is_not_there_yet_is_waited_for_and_no_longer_than_is_said() -> None:
    exchange = KvExchange("old", LIMITS, nobody, time.monotonic)
    place = stage()
    compute(place, TEXTS[0])
    wanted = Wanted("f", place.kv_layout.name, range(LAYERS), NAMES[0], 60.0)

    async def read() -> list[bytes]:
        told = exchange.offered(wanted, lambda _: place.kv_layout)
        return [piece.name async for piece in told if piece is not None]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    blocks = list(zip(NAMES[0], TABLE, strict=False))
    await exchange.keep(place, 1, blocks[:3], last=False)  # type: ignore[arg-type]
    await exchange.keep(place, 1, blocks[3:], last=True)  # type: ignore[arg-type]
    assert await reading == NAMES[0]
    wanted = replace(wanted, names=[b"never"], wait_s=0.0)
    assert await read() == []


@dataclass
class Slow(Place):
    """It is long about its blocks."""

    copies: asyncio.Event = field(default_factory=asyncio.Event)

    async def export_blocks(self, number: int, blocks: Sequence[int]) -> list[bytes]:
        await self.copies.wait()
        return await super().export_blocks(number, blocks)


async def test_who_waits_for_what_is_being_kept_says_so_and_is_waited_for() -> None:
    """Silence is of one that is gone."""
    now_s = 0.0
    old = KvExchange("old", LIMITS, nobody, lambda: now_s)
    place, blocks = Slow(stage().backend), list(zip(NAMES[0], TABLE, strict=False))
    compute(place, TEXTS[0])
    wanted = Wanted("f", place.kv_layout.name, range(LAYERS), NAMES[0], 60.0)
    told = old.offered(wanted, lambda _: place.kv_layout)
    keeping = asyncio.create_task(old.keep(place, 1, blocks, last=True))  # type: ignore[arg-type]
    for _ in range(2):
        waiting = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0)
        now_s += STILL_S
        assert await waiting is None
    place.copies.set()
    await keeping
    pieces = [piece async for piece in told]

    async def read(*asked: Any) -> AsyncGenerator[KvPiece | None, None]:
        for piece in (None, *pieces[:1], None, None, *pieces[1:]):
            yield piece

    empty = stage()
    new = KvExchange("new", replace(LIMITS, flows=1), read, time.monotonic)
    came = await new.fetch(empty, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
    assert came.blocks == BLOCKS
    assert empty.backend.export_blocks(TABLE[:BLOCKS]) == place.backend.export_blocks(
        TABLE[:BLOCKS]
    )


async def test_who_keeps_nothing_just_now_does_not_hold_up_who_reads() -> None:
    """As where a formation goes on and what it had no room for will never be kept."""
    now_s, layout = 0.0, stage().kv_layout
    exchange = KvExchange("old", LIMITS, nobody, lambda: now_s)

    def living(_: str) -> KvLayout:
        nonlocal now_s
        now_s += STILL_S  # with each look
        return layout

    wanted = Wanted("f", layout.name, range(LAYERS), NAMES[0], 5 * STILL_S)
    assert [piece async for piece in exchange.offered(wanted, living)] == []


async def test_what_lies_in_its_place_is_neither_fetched_nor_filled() -> None:
    """As where a stage has had the formation before: what it holds counts as filled."""
    place, blocks = stage(), list(zip(NAMES[0], TABLE, strict=False))
    compute(place, TEXTS[0])
    before = place.backend.export_blocks(TABLE)
    exchange = KvExchange("old", LIMITS, nobody, time.monotonic)
    place.contents.note(blocks)
    came = await exchange.fetch(place, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
    assert (came.blocks, came.fetched_bytes) == (BLOCKS, 0)
    assert place.backend.export_blocks(TABLE) == before
    place.contents.written([TABLE[1], TABLE[2]])
    place.backend.import_blocks(TABLE[1:3], [bytes(len(before[1]))] * 2)
    other = await kept()
    exchange = KvExchange("new", LIMITS, lambda *asked: other_read(other, *asked), time.monotonic)
    came = await exchange.fetch(place, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
    assert came.blocks == BLOCKS
    assert came.fetched_bytes == 2 * len(before[1]), "of those that lie there no more"
    assert place.backend.export_blocks(TABLE[:BLOCKS]) == before[:BLOCKS]
    place.contents.written(TABLE[1:2])
    exchange = KvExchange("alone", LIMITS, lambda *_: silence(), time.monotonic)
    came = await exchange.fetch(place, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
    assert came.blocks == 1, "up to the first one that does not come"


def other_read(
    exchange: KvExchange, member: KvMember, wanted: Wanted, limit_s: float
) -> AsyncGenerator[KvPiece | None, None]:
    """As another process does."""
    return exchange.offered(wanted, lambda _: None)


async def silence() -> AsyncGenerator[KvPiece | None, None]:
    """Of one that has nothing."""
    for piece in ():
        yield piece


async def test_what_has_no_room_is_not_kept_and_comes_last() -> None:
    place = stage()
    compute(place, TEXTS[0])
    size = place.kv_layout.size_bytes(place.layers)
    exchange = KvExchange("old", KvLimits(shelf_bytes=2 * size), nobody, time.monotonic)
    blocks = list(zip(NAMES[0], TABLE, strict=False))
    assert await exchange.keep(place, 1, blocks, last=True) == 2  # type: ignore[arg-type]
    assert exchange.shelf.used_bytes == 2 * size


async def test_offers_at_the_same_time_leave_half_of_the_room_to_what_moves() -> None:
    size_bytes = stage().kv_layout.size_bytes(range(LAYERS))
    limits = replace(LIMITS, shelf_bytes=2 * BLOCKS * size_bytes)
    exchange, copies = KvExchange("old", limits, nobody, time.monotonic), asyncio.Event()
    keeps = []
    for names, text in zip(NAMES, TEXTS, strict=True):
        place: Any = Slow(stage().backend, copies=copies)
        compute(place, text)
        blocks = list(zip(names, TABLE, strict=False))
        offer = exchange.keep(place, 1, blocks, last=False, keep_s=600.0, offered=True)
        keeps.append(asyncio.create_task(offer))
    await asyncio.sleep(0)  # both have found room
    copies.set()
    assert await asyncio.gather(*keeps) == [BLOCKS, 0]
    assert exchange.shelf.used_bytes == BLOCKS * size_bytes


async def test_what_has_no_room_where_it_goes_is_told_apart_from_what_does_not_come() -> None:
    honest, place = await kept(), stage()
    size = place.kv_layout.size_bytes(place.layers)

    async def read(
        member: KvMember, wanted: Wanted, limit_s: float
    ) -> AsyncGenerator[KvPiece | None, None]:
        async for piece in honest.offered(wanted, lambda _: None):
            yield piece

    async def stored(blocks: int, names: list[bytes]) -> tuple[int, bool]:
        exchange = KvExchange("new", KvLimits(shelf_bytes=blocks * size), read, time.monotonic)
        came = await exchange.store(SOURCE, place.kv_layout, place.layers, names, 60.0)
        return came.blocks, came.full

    assert await stored(BLOCKS, NAMES[0]) == (BLOCKS, False)
    assert await stored(2, NAMES[0]) == (2, True)
    assert await stored(BLOCKS, [NAMES[0][0], b"nobody has it"]) == (1, False)


async def test_a_fetch_holds_no_more_than_its_window_at_a_time() -> None:
    honest, windows = await kept(), []

    async def read(
        member: KvMember, wanted: Wanted, limit_s: float
    ) -> AsyncGenerator[KvPiece | None, None]:
        windows.append(list(wanted.names))
        async for piece in honest.offered(wanted, lambda _: None):
            yield piece

    place = stage()
    limits = KvLimits(flows=1, window_bytes=3 * place.kv_layout.size_bytes(place.layers))
    exchange = KvExchange("new", limits, read, time.monotonic)
    blocks = list(zip(NAMES[0], TABLE, strict=False))
    came = await exchange.fetch(place, 1, SOURCE, blocks, 60.0)  # type: ignore[arg-type]
    size = place.kv_layout.size_bytes(place.layers)
    assert (came.blocks, came.fetched_bytes) == (BLOCKS, BLOCKS * size)
    assert windows == [NAMES[0][:3], NAMES[0][3:]]
    assert compute(place, TEXTS[0], BLOCKS * BLOCK_SIZE) == expected_ids(TEXTS[0], 1)[0]


async def test_what_is_asked_for_is_checked() -> None:
    exchange = await kept()
    wanted = Wanted("f", stage().kv_layout.name, range(LAYERS), NAMES[0], 0.0)
    for bad, error in (
        (replace(wanted, formation_id="g"), FailedPrecondition),
        (replace(wanted, layout_name="other"), FailedPrecondition),
        (replace(wanted, names=[b""] * 65_537), InvalidArgument),
    ):
        with pytest.raises(error):
            await anext(exchange.offered(bad, lambda _: None))


async def test_a_stage_whose_layers_differ_keeps_and_fetches_nothing() -> None:
    class Uneven(Place):
        @property
        def kv_layout(self) -> KvLayout:
            return replace(self.backend.kv_layout, head_bytes=0)

    place: Any = Uneven(stage().backend)
    exchange = KvExchange("old", LIMITS, nobody, time.monotonic)
    blocks = list(zip(NAMES[0], TABLE, strict=False))
    assert await exchange.keep(place, 1, blocks, last=True) == 0
    assert (await exchange.fetch(place, 1, SOURCE, blocks, 60.0)).blocks == 0
