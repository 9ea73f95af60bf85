"""Blocks are cut and joined by layers and heads, and told apart by their checksum."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.core.kv_layout import KvLayout, checksum_of

LAYOUT = KvLayout("tiny", 4, 6, 16, "exact-tiny")


def block(layers: range, heads: range = range(4)) -> bytes:
    """Bytes that tell where they belong."""
    return b"".join(bytes([layer, head] * 3) for layer in layers for head in heads)


@given(st.integers(0, 9), st.integers(1, 9), st.data())
def test_layers_are_cut_out_where_they_lie(first: int, count: int, data: st.DataObject) -> None:
    held = range(first, first + count)
    start = data.draw(st.integers(first, held.stop - 1))
    wanted = range(start, data.draw(st.integers(start + 1, held.stop)))
    assert bytes(LAYOUT.cut(block(held), held, wanted)) == block(wanted)


@pytest.mark.parametrize("ranks", [(range(4),), (range(2), range(2, 4)), tuple(map(range, [4, 4]))])
def test_what_ranks_have_is_joined_and_taken_apart_by_heads(ranks: tuple[range, ...]) -> None:
    layers = range(3, 6)
    whole = block(layers)
    parts = [(heads, LAYOUT.of_heads(layers, whole, heads)) for heads in ranks]
    assert [part for _, part in parts] == [block(layers, heads) for heads in ranks]
    assert LAYOUT.joined(layers, parts) == whole


def test_a_head_that_no_rank_has_is_an_error() -> None:
    layers = range(2)
    with pytest.raises(ValueError, match=r"heads \[0, 1\] of 4"):
        LAYOUT.joined(layers, [(range(2), block(layers, range(2)))])


def test_a_checksum_is_of_the_layout_the_name_the_layers_and_the_bytes() -> None:
    layers, name = range(2, 4), b"n" * 32
    data = block(layers)
    sums = {
        checksum_of(LAYOUT.name, name, layers, data),
        checksum_of(LAYOUT.name, name[:-1] + b"m", layers, data),
        checksum_of(LAYOUT.name, name, range(3, 5), data),
        checksum_of(LAYOUT.name, name, layers, data[:-1] + b"\0"),
        checksum_of(LAYOUT.name, name, layers, data[:-1]),
        checksum_of(replace(LAYOUT, numerics_class="inexact-tiny").name, name, layers, data),
        checksum_of(replace(LAYOUT, form="other").name, name, layers, data),
        checksum_of(replace(LAYOUT, positions=32).name, name, layers, data),
    }
    assert len(sums) == 8
    assert checksum_of(LAYOUT.name, name, layers, memoryview(data)) in sums


def test_rounded_blocks_lie_in_a_layout_of_their_own_where_their_elements_are_known() -> None:
    assert LAYOUT.rounded is None
    wide = replace(LAYOUT, head_bytes=64, element="bf16")
    assert wide.name == replace(wide, element="").name, "an older engine has the same blocks"
    narrow = wide.rounded
    assert narrow is not None
    assert (narrow.head_bytes, narrow.rounded) == (8 + 32, None)
    assert narrow.name not in (wide.name, LAYOUT.name)
    assert replace(wide, head_bytes=0).rounded is None
    other = replace(wide, numerics_class="exact-other").rounded
    assert other is not None
    assert other.name != narrow.name
