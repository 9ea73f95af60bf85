"""A cache stays while somebody may want what it holds, and goes before a load has its memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.common.errors import Superseded
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.compute import Compute
from services.engine.core.memory import Memory
from services.engine.stage_cache import StageCache
from services.engine.stages import Progress, Stages
from tests.contract.engine.rig import MODEL
from tests.contract.engine.tiny import TinyBackend, TinyLoader
from tests.waiting import until

FRONT, BACK = StageSpec(LayerRange(0, 2)), StageSpec(LayerRange(2, 6))
BLOCKS = [(b"a", 3)]


class Rig:
    """Stages of a model of six layers, computed by nobody."""

    def __init__(self, compute: Compute) -> None:
        self.compute, self.loader = compute, TinyLoader()
        self.stages = Stages(self.loader, compute, Memory(1 << 30, 16))

    async def hold(self, *specs: StageSpec) -> None:
        async for _ in self.stages.hold(MODEL, specs):
            pass

    def backend(self, spec: StageSpec) -> TinyBackend:
        return next(b for b in self.loader.backends if b.layers == range(*spec_bounds(spec)))

    async def use(
        self, spec: StageSpec, blocks: int = 8, numerics_class: str = "exact-tiny"
    ) -> StageCache:
        """A formation begins."""
        held = self.stages.find(MODEL, spec)
        assert held is not None
        cache = self.stages.use(held, blocks, numerics_class)
        await self.compute.run(cache.begin)
        return cache

    def ahead(self, spec: StageSpec, blocks: int = 8) -> StageCache | None:
        layout = self.backend(spec).kv_layout
        return self.stages.ahead(layout.name, range(*spec_bounds(spec)), blocks)


def spec_bounds(spec: StageSpec) -> tuple[int, int]:
    return spec.layers.start, spec.layers.end


@pytest.fixture
def rig() -> Iterator[Rig]:
    compute = Compute()
    yield Rig(compute)
    compute.close()


async def test_what_a_formation_left_is_there_for_the_next_one_of_its_size(rig: Rig) -> None:
    await rig.hold(FRONT, BACK)
    before = await rig.use(FRONT)
    before.contents.note(BLOCKS)
    await rig.stages.unuse()
    assert rig.backend(FRONT).kv_blocks == 8
    assert await rig.use(FRONT) is before
    assert BLOCKS[0] in before.contents
    await rig.stages.unuse()
    other = await rig.use(FRONT, blocks=4)
    assert other is not before
    assert not other.contents
    assert rig.backend(FRONT).kv_blocks == 4
    await rig.stages.unuse()
    assert rig.backend(FRONT).kv_blocks == 0, "it held nothing that anybody knew"


async def test_what_a_pipeline_of_another_class_left_is_not_taken_for_what_it_was(rig: Rig) -> None:
    """The stage is the same, and those before it may have computed with other sums."""
    await rig.hold(BACK)
    before = await rig.use(BACK, numerics_class="exact-tiny-tp2x2-tp1x4")
    before.contents.note(BLOCKS)
    await rig.stages.unuse()
    other = await rig.use(BACK)
    assert other is not before
    assert not other.contents
    other.contents.note(BLOCKS)
    await rig.stages.unuse()
    assert rig.ahead(BACK) is other, "laid by who has the stage's own class"
    assert await rig.use(BACK) is other
    await rig.stages.unuse()


async def test_what_is_left_goes_before_another_stage_or_a_load_has_its_memory(rig: Rig) -> None:
    await rig.hold(FRONT, BACK)
    for wants in (lambda: rig.use(BACK), lambda: rig.hold(FRONT, StageSpec(LayerRange(1, 3)))):
        cache = await rig.use(FRONT)
        cache.contents.note(BLOCKS)
        await rig.stages.unuse()
        await rig.hold(FRONT, BACK)
        assert rig.backend(FRONT).kv_blocks == 8, "nothing was loaded"
        await wants()
        await rig.stages.unuse()
        assert rig.backend(FRONT).kv_blocks == 0
    await rig.hold(FRONT, BACK)


async def test_blocks_lie_in_a_cache_before_its_formation_begins(rig: Rig) -> None:
    await rig.hold(FRONT, BACK)
    size_bytes = rig.backend(BACK).kv_layout.size_bytes(range(2, 6))
    cache = rig.ahead(BACK)
    assert cache is not None
    assert rig.ahead(BACK) is cache
    assert await cache.lay(BLOCKS, [bytes(size_bytes)])
    assert BLOCKS[0] in cache.contents
    assert rig.backend(BACK).export_blocks([3]) == [bytes(size_bytes)]
    assert await rig.use(BACK) is cache
    assert not await cache.lay([(b"b", 3)], [bytes(size_bytes)]), "a formation has it"
    assert BLOCKS[0] in cache.contents
    assert rig.ahead(BACK) is None
    assert rig.ahead(FRONT) is None
    await rig.stages.unuse()


async def test_a_formation_that_comes_meanwhile_counts_on_nothing_that_is_being_laid(
    rig: Rig,
) -> None:
    await rig.hold(BACK)
    cache = rig.ahead(BACK)
    assert cache is not None
    size_bytes = rig.backend(BACK).kv_layout.size_bytes(range(2, 6))
    laying = asyncio.create_task(cache.lay(BLOCKS, [bytes(size_bytes)]))
    await asyncio.sleep(0)  # whether the thread comes to it before the formation does
    assert await rig.use(BACK) is cache
    assert not await asyncio.wait_for(laying, 60)
    assert not cache.contents
    await rig.stages.unuse()


async def test_what_was_not_laid_is_not_known_though_nobody_has_the_cache_any_more() -> None:
    backend = TinyBackend(range(2, 6))

    class Meanwhile:
        """A formation begins before the thread comes to it, and ends behind that."""

        cache: StageCache

        def run(self, function: Callable[[], bool]) -> asyncio.Future[bool]:
            done = asyncio.get_running_loop().create_future()
            self.cache.taken = True
            done.set_result(function())
            self.cache.taken = False
            return done

    compute: Any = Meanwhile()
    compute.cache = cache = StageCache(backend, compute, 8, "exact-tiny")
    size_bytes = backend.kv_layout.size_bytes(range(2, 6))
    assert not await cache.lay(BLOCKS, [bytes(size_bytes)])
    assert not cache.contents
    assert backend.kv_blocks == 0


async def test_there_is_no_cache_ahead_of_what_is_not_held_or_too_large(rig: Rig) -> None:
    await rig.hold(FRONT)
    layout = rig.backend(FRONT).kv_layout
    assert rig.stages.ahead(layout.name, range(2, 6), 8) is None
    assert rig.stages.ahead("another", range(2), 8) is None
    assert rig.stages.ahead(layout.name, range(2), 17) is None
    assert rig.stages.ahead(layout.name, range(2), 0) is None
    cache = rig.ahead(FRONT)
    assert cache is not None
    await rig.hold(BACK)
    assert not await cache.lay(BLOCKS, [b""]), "its stage is gone"


async def test_what_a_load_had_that_another_hold_ended_goes_at_once_and_no_collector_is_needed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    had: list[weakref.ref[object]] = []
    load = rig.loader.load

    def loading(model: ModelRef, spec: StageSpec, progress: Progress) -> TinyBackend:
        weights = TinyLoader()
        had.append(weakref.ref(weights))
        return load(model, spec, progress)

    monkeypatch.setattr(rig.loader, "load", loading)
    gc.disable()
    try:
        rig.loader.gate.set()
        first = asyncio.create_task(rig.hold(FRONT))
        await until(lambda: len(had) == 1)
        second = asyncio.create_task(rig.hold(BACK))
        with pytest.raises(Superseded):
            await first
        await until(lambda: len(had) == 2)
        assert had[0]() is None, "the second load needs its memory"
        rig.loader.gate.clear()
        await second
    finally:
        gc.enable()
