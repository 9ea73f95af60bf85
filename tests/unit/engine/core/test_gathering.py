"""Only what was asked for, whole and unhurt, counts."""

from __future__ import annotations

import pytest

from services.engine.core.gathering import Gathering
from services.engine.core.kv_layout import KvLayout, KvPiece, checksum_of

LAYOUT = KvLayout("tiny", 1, 2, 16, "exact-tiny")
LAYERS = range(2, 6)
NAMES = [b"a", b"b", b"c"]


def piece(name: bytes = b"a", layers: range = LAYERS, data: bytes | None = None) -> KvPiece:
    data = b"".join(name + bytes([n]) for n in layers) if data is None else data
    return KvPiece(name, layers, data, checksum_of(LAYOUT.name, name, layers, data))


def test_blocks_count_from_the_first_one_on_when_all_their_layers_are_there() -> None:
    gathering = Gathering(LAYOUT, LAYERS, NAMES)
    assert gathering.take(piece(b"c"))
    assert gathering.take(piece(b"a", range(2, 4)))
    assert gathering.whole == 0
    assert gathering.lacking(range(2, 4)) == [b"b"]
    assert gathering.lacking(range(4, 6)) == [b"a", b"b"]
    gathering.put(b"a", range(4, 6), piece(b"a", range(4, 6)).data)
    assert gathering.whole == 1
    assert gathering.take(piece(b"b"))
    assert gathering.whole == 3
    assert [(n, bytes(d)) for n, d in gathering.blocks(3)] == [(n, piece(n).data) for n in NAMES]
    assert gathering.refused == 0


@pytest.mark.parametrize(
    "bad",
    [
        piece(b"d"),
        piece(layers=range(1, 4)),
        piece(layers=range(2, 7)),
        piece(layers=range(2, 2), data=b""),
        piece(data=b"short"),
        piece(data=b"longerlonger"),
        KvPiece(b"a", LAYERS, b"x" * 8, piece().checksum),
        KvPiece(b"a", LAYERS, piece().data, b""),
        KvPiece(b"a", LAYERS, piece(b"b").data, piece(b"b").checksum),
        KvPiece(
            b"a", range(2, 4), piece(layers=range(3, 5)).data, piece(layers=range(3, 5)).checksum
        ),
    ],
)
def test_what_is_not_what_it_should_be_counts_for_nothing(bad: KvPiece) -> None:
    gathering = Gathering(LAYOUT, LAYERS, NAMES)
    assert not gathering.take(bad)
    assert (gathering.whole, gathering.refused) == (0, 1)
    assert gathering.lacking(LAYERS) == NAMES
    assert gathering.take(piece())
    assert gathering.whole == 1


def test_a_part_that_comes_twice_is_refused() -> None:
    gathering = Gathering(LAYOUT, LAYERS, NAMES)
    assert gathering.take(piece())
    assert not gathering.take(piece())
    assert not gathering.take(piece(layers=range(2, 3)))
    assert (gathering.whole, gathering.refused) == (1, 2)
