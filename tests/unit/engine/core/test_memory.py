"""Memory is counted once for what stages share, and never promised twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.core.memory import InUse, Memory, StageSize, total_bytes

MODEL = ModelRef("m", "d")


def stage(start: int, end: int, layer_bytes: int = 100, model: ModelRef = MODEL) -> StageSize:
    sizes = dict.fromkeys(range(start, end), layer_bytes)
    return StageSize(model, StageSpec(LayerRange(start, end)), sizes, 2 * (end - start))


def test_what_stages_share_is_counted_once() -> None:
    assert total_bytes([stage(0, 4), stage(2, 6)]) == 600
    assert total_bytes([stage(0, 4), stage(0, 4, model=ModelRef("m", "other"))]) == 800


def test_what_stages_do_not_share_is_counted_for_each() -> None:
    first, second = (replace(each, shared=False) for each in (stage(0, 4), stage(2, 6)))
    assert total_bytes([first, second, first]) == 800
    assert Memory(830, 10).fitting([first, second], None) == (True, True)
    assert Memory(800, 10).fitting([first, second], None) == (True, False)


def test_a_stage_beyond_all_memory_is_refused_by_how_much() -> None:
    with pytest.raises(FailedPrecondition, match=r"400 bytes of layers \[0, 4\) .*in 349: 59 "):
        Memory(349, 10).fitting([stage(0, 2), stage(0, 4)], None)
    assert Memory(408, 10).fitting([stage(0, 4)], None) == (True,)
    with pytest.raises(FailedPrecondition, match=" in 407: 1 bytes are lacking") as refused:
        Memory(407, 10).fitting([stage(0, 4)], None)
    assert refused.value.field == "stages.layers"


def test_what_comes_first_has_memory_first() -> None:
    two = [stage(0, 4), stage(4, 8)]
    assert Memory(808, 10).fitting(two, None) == (True, True)
    assert Memory(807, 10).fitting(two, None) == (True, False)
    assert Memory(807, 10).fitting([*two, stage(1, 3)], None) == (True, False, True)


def test_a_stage_finds_room_beside_the_formation_that_lives_and_its_cache() -> None:
    serving = InUse(stage(0, 4), 5)  # 400 of weights, 40 of cache
    assert Memory(640, 10).fitting([stage(2, 6)], serving) == (True,)
    assert Memory(639, 10).fitting([stage(2, 6)], serving) == (False,)
    assert Memory(639, 10).fitting([stage(2, 6)], None) == (True,)


def test_the_stage_in_use_keeps_its_place_wherever_it_is_named() -> None:
    serving = InUse(stage(0, 4), 5)
    assert Memory(700, 10).fitting([stage(4, 8), stage(0, 4)], serving) == (False, True)


def test_a_stage_that_would_have_no_cache_beside_the_others_is_not_held() -> None:
    assert Memory(805, 10).fitting([stage(0, 4), stage(4, 8)], None) == (True, False)


def test_a_cache_has_what_all_that_is_held_leaves() -> None:
    memory = Memory(700, 10)
    assert memory.kv_blocks(stage(0, 4), [stage(0, 4)]) == 10
    assert memory.kv_blocks(stage(0, 4), [stage(0, 4), stage(2, 6)]) == 10
    assert memory.kv_blocks(stage(0, 4), [stage(0, 4), stage(3, 6)]) == 10
    assert Memory(630, 10).kv_blocks(stage(0, 4), [stage(0, 4), stage(2, 6)]) == 3
    assert Memory(590, 10).kv_blocks(stage(0, 4), [stage(0, 4), stage(2, 6)]) == 0


ranges = st.tuples(st.integers(0, 7), st.integers(1, 4)).map(lambda r: stage(r[0], r[0] + r[1]))


@given(
    wanted=st.lists(ranges, max_size=5, unique_by=lambda s: s.layers),
    using=st.none() | st.tuples(ranges, st.integers(1, 20)),
    size_bytes=st.integers(1, 1500),
)
def test_what_is_held_fits_now_and_when_any_of_it_serves(
    wanted: list[StageSize], using: tuple[StageSize, int] | None, size_bytes: int
) -> None:
    memory = Memory(size_bytes, 20)
    in_use = InUse(*using) if using is not None else None
    if in_use is not None and total_bytes([in_use.size]) + in_use.cache_bytes > size_bytes:
        return  # no formation lives beyond memory
    try:
        fitting = memory.fitting(wanted, in_use)
    except FailedPrecondition:
        assert any(s.weight_bytes + s.kv_block_bytes > size_bytes for s in wanted)
        return
    held = [size for size, fits in zip(wanted, fitting, strict=True) if fits]
    now = [*held, in_use.size] if in_use is not None else held
    assert total_bytes(now) + (in_use.cache_bytes if in_use is not None else 0) <= size_bytes
    for size in held:
        blocks = memory.kv_blocks(size, held)
        if in_use is None or size != in_use.size:
            assert blocks >= 1
        assert total_bytes(held) + blocks * size.kv_block_bytes <= size_bytes
