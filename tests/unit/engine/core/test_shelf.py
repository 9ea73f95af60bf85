"""What is kept is bounded in bytes and time, and found by layout, name and layers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.engine.core.kv_layout import KvLayout
from services.engine.core.shelf import Shelf

LAYOUT = KvLayout("tiny", 1, 2, 16, "exact-tiny")


def data(layers: range) -> bytes:
    return b"".join(bytes([layer] * 2) for layer in layers)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5)), min_size=1), st.data())
def test_each_layer_is_found_once_whatever_stages_kept_it(
    kept: list[tuple[int, int]], drawn: st.DataObject
) -> None:
    shelf = Shelf(10_000, 1.0)
    there: set[int] = set()
    for start, count in kept:
        layers = range(start, start + count)
        assert shelf.put(LAYOUT, b"a", layers, data(layers), 0.0)
        there |= set(layers)
    start = drawn.draw(st.integers(0, 11))
    wanted = range(start, drawn.draw(st.integers(start + 1, 12)))
    parts = list(shelf.find(LAYOUT.name, b"a", wanted, 0.5))
    layers_found = [layer for layers, _ in parts for layer in layers]
    assert layers_found == sorted(there & set(wanted))
    assert all(bytes(part) == data(layers) for layers, part in parts)


def test_what_does_not_fit_is_not_kept_and_room_comes_with_time() -> None:
    shelf, layers = Shelf(10, 5.0), range(2)
    assert shelf.room(4, 0.0) == 2
    assert [shelf.put(LAYOUT, name, layers, data(layers), 1.0) for name in (b"a", b"b", b"c")] == [
        True,
        True,
        False,
    ]
    assert shelf.put(LAYOUT, b"a", layers, data(layers), 2.0)  # it is there, and takes no more room
    assert (shelf.used_bytes, shelf.room(4, 2.0)) == (8, 0)
    assert shelf.keeps_for_s(2.0) == 5.0
    assert list(shelf.find(LAYOUT.name, b"c", layers, 2.0)) == []
    assert shelf.put(LAYOUT, b"c", layers, data(layers), 6.0)
    assert (shelf.used_bytes, shelf.keeps_for_s(6.0)) == (8, 5.0)
    assert list(shelf.find(LAYOUT.name, b"b", layers, 6.0)) == []
    assert list(shelf.find(LAYOUT.name, b"a", layers, 6.9)) != []
    assert list(shelf.find(LAYOUT.name, b"a", layers, 7.0)) == []
    assert shelf.used_bytes == 4
    assert list(shelf.find(LAYOUT.name, b"c", layers, 11.0)) == []
    assert (shelf.used_bytes, shelf.keeps_for_s(11.0)) == (0, 0.0)


def test_what_is_kept_anew_is_kept_for_longer_whatever_came_between() -> None:
    shelf, layers = Shelf(100, 5.0), range(2)
    for name in (b"a", b"b", b"c"):
        shelf.put(LAYOUT, name, layers, data(layers), 0.0)
    assert shelf.renew(LAYOUT.name, b"b", layers, 3.0)
    assert not shelf.renew(LAYOUT.name, b"b", range(1), 3.0)
    assert not shelf.renew(LAYOUT.name, b"d", layers, 3.0)
    found = [name for name in (b"a", b"b", b"c") if shelf.renew(LAYOUT.name, name, layers, 5.0)]
    assert (found, shelf.used_bytes, shelf.keeps_for_s(5.0)) == ([b"b"], 4, 5.0)
    assert not shelf.renew(LAYOUT.name, b"b", layers, 10.0)
    assert (shelf.used_bytes, shelf.keeps_for_s(10.0)) == (0, 0.0)


def test_another_layout_finds_nothing() -> None:
    shelf, layers = Shelf(100, 5.0), range(2)
    shelf.put(LAYOUT, b"a", layers, data(layers), 0.0)
    other = replace(LAYOUT, numerics_class="exact-other")
    assert list(shelf.find(other.name, b"a", layers, 0.0)) == []


def test_a_formation_is_known_while_what_was_kept_of_it_is() -> None:
    shelf = Shelf(100, 5.0)
    assert shelf.layout_of("f", 0.0) is None
    shelf.complete("f", LAYOUT, 0.0)
    assert shelf.layout_of("f", 4.9) == LAYOUT
    assert shelf.layout_of("f", 5.0) is None


def test_what_takes_long_to_be_fetched_is_kept_for_longer() -> None:
    """Said once, it holds: whoever keeps it again for less does not shorten it."""
    shelf, layers = Shelf(100, 5.0), range(2)
    shelf.put(LAYOUT, b"a", layers, data(layers), 0.0, 60.0)
    shelf.put(LAYOUT, b"b", layers, data(layers), 0.0)
    assert shelf.renew(LAYOUT.name, b"a", layers, 1.0)
    shelf.complete("f", LAYOUT, 1.0, 60.0)
    assert shelf.keeps_for_s(1.0) == 59.0
    assert [shelf.renew(LAYOUT.name, name, layers, 6.0) for name in (b"a", b"b")] == [True, False]
    assert list(shelf.find(LAYOUT.name, b"a", layers, 59.9))
    assert not list(shelf.find(LAYOUT.name, b"a", layers, 60.0))
    assert shelf.layout_of("f", 60.9) == LAYOUT
    assert shelf.layout_of("f", 61.0) is None
    shelf.put(LAYOUT, b"c", layers, data(layers), 62.0)
    assert shelf.renew(LAYOUT.name, b"c", layers, 63.0, 20.0)
    assert shelf.keeps_for_s(63.0) == 20.0
