"""Which stages the process holds, and how it comes to hold others."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from services.common import telemetry
from services.common.errors import InvalidArgument, Superseded
from services.common.generation import ModelRef
from services.common.nodes import MOST_STAGES, StageHolding, StageSpec
from services.engine.backend import StageBackend
from services.engine.compute import Compute
from services.engine.core.memory import InUse, Memory, StageSize
from services.engine.stage_cache import StageCache

_log = logging.getLogger(__name__)
T = TypeVar("T")

NICENESS = 5
"""Beside a formation that serves, a load gives way on cores that both want."""

Progress = Callable[[int, int], None]
"""Bytes done so far, bytes in all; called from any thread. What it raises ends the work."""


class StageLoader(Protocol):
    """Makes stages of stored weights; blocking, one call at a time but for `retain`."""

    def warm(self) -> None:
        """Begins to import what a load will need, in a thread of its own."""
        ...

    def measure(self, model: ModelRef, spec: StageSpec) -> StageSize:
        """What a stage takes. Raises NotFound, InvalidArgument, Unavailable, or FailedPrecondition
        for a model that this backend cannot serve."""
        ...

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> StageBackend:
        """A stage in no formation. Of its layers only those are read that are not held yet.

        Raises what `measure` raises, and DataLoss.
        """
        ...

    def prefetch(self, model: ModelRef, spec: StageSpec, progress: Progress) -> None:
        """Has the node's store fetch a stage, so that a load has nothing left to fetch."""
        ...

    def retain(self, layers: Mapping[ModelRef, Collection[int]]) -> None:
        """Lets go of all other layers, as soon as no stage uses them."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class HeldStage:
    """A stage in memory."""

    size: StageSize
    backend: StageBackend

    @property
    def model(self) -> ModelRef:
        return self.size.model

    @property
    def spec(self) -> StageSpec:
        return self.size.spec


@dataclass(frozen=True, slots=True)
class HoldProgress:
    """Bytes so far and in all, of the stages begun; at last what is held of all asked for."""

    loaded_bytes: int
    total_bytes: int
    stages: tuple[StageHolding, ...] | None = None


@dataclass(slots=True, eq=False)
class _Hold:
    model: ModelRef
    stages: tuple[StageSpec, ...]
    task: asyncio.Task[tuple[StageHolding, ...]] = field(init=False)
    superseded: bool = False
    before: tuple[int, int] = (0, 0)
    """Of the stages that are done."""
    so_far: tuple[int, int] = (0, 0)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.check()
        self.so_far = (self.before[0] + done_bytes, self.before[1] + total_bytes)

    def check(self) -> None:
        if self.superseded:
            raise Superseded("a newer Hold asks for something else", field="stages")


class Stages:
    """The stages in memory, as the newest Hold asked for them.

    A Hold goes on when its caller is gone; asked again, it is the same one. Another one ends it.
    The stage of the formation that lives stays, asked for or not, until the formation ends.
    """

    def __init__(
        self, loader: StageLoader, compute: Compute, memory: Memory, *, report_s: float = 0.5
    ) -> None:
        self._loader = loader
        self._compute = compute
        self._memory = memory
        self._report_s = report_s
        self._hold: _Hold | None = None
        self._wanted: tuple[StageSize, ...] = ()
        """What is held or loaded: the memory of these is taken."""
        self._held: list[HeldStage] = []
        self._used: tuple[HeldStage, InUse] | None = None
        self._cache: tuple[HeldStage, StageCache] | None = None
        """That of the formation that lives; or what it left, or what the next one will have, until
        a load or another stage's formation wants its memory."""

    @property
    def held(self) -> tuple[HeldStage, ...]:
        return tuple(stage for stage in self._held if not stage.backend.lost)

    @property
    def holdings(self) -> tuple[StageHolding, ...]:
        """What is held, in words."""
        return tuple(map(self._holding, self.held))

    async def hold(
        self, model: ModelRef, stages: Sequence[StageSpec]
    ) -> AsyncGenerator[HoldProgress, None]:
        """Holds these stages and no others, the first ones first; what does not fit beside them and
        the formation that lives is fetched into the node's store.

        Raises FailedPrecondition for a stage beyond all memory, before anything is dropped or
        loaded, and Superseded when another Hold takes over.
        """
        _check(stages)
        hold = self._hold
        if hold is None or (hold.model, hold.stages) != (model, tuple(stages)):
            hold = self._begin(model, stages)
        while not hold.task.done():
            yield HoldProgress(*hold.so_far)
            await asyncio.wait((hold.task,), timeout=self._report_s)
        yield HoldProgress(*hold.so_far, hold.task.result())

    def find(self, model: ModelRef, wanted: StageSpec) -> HeldStage | None:
        """Exactly this stage, unless it is being let go of."""
        for stage in self.held:
            same = (stage.model.digest, stage.spec) == (model.digest, wanted)
            if same and stage.size in self._wanted:
                return stage
        return None

    def kv_blocks(self, stage: HeldStage) -> int:
        """Blocks that a formation of the stage can have, once none other lives."""
        return self._memory.kv_blocks(stage.size, self._wanted)

    def use(self, stage: HeldStage, kv_blocks: int, numerics_class: str) -> StageCache:
        """A formation lives, with so large a KV cache, and this is the class of its pipeline: a
        cache of both that is there already stays as it is."""
        cache = self._cache_of(stage, kv_blocks, numerics_class)
        cache.taken = True
        self._used = (stage, InUse(stage.size, kv_blocks))
        return cache

    def ahead(self, layout_name: str, layers: range, kv_blocks: int) -> StageCache | None:
        """The cache that a formation will have of a stage of these layers, in a pipeline of the
        stage's own class; None where there is no such stage, and while some formation lives, or
        stages are loaded, for these have the memory."""
        if self._used is not None or self._hold is not None:
            return None
        for stage in self.held:
            backend = stage.backend
            fits = backend.facts.layers == layers and backend.kv_layout.name == layout_name
            if fits and stage.size in self._wanted and 0 < kv_blocks <= self.kv_blocks(stage):
                return self._cache_of(stage, kv_blocks, backend.facts.numerics_class)
        return None

    def unuse(self) -> asyncio.Future[None]:
        """It ended: its cache goes, unless it holds what the next one may want, and its stage if
        nobody asks for it any more, before anything is computed that was not asked for yet."""
        if self._used is None:
            return self._compute.run(lambda: None)
        self._used = None
        if self._cache is not None:
            self._cache[1].taken = False
            if not self._cache[1].contents:
                self._end_cache()
        return self._drop_unwanted()

    def drop_lost(self) -> bool:
        """Stages that are of no use any more; asked for again, they are loaded again. Whether the
        formation that lives has lost its own."""
        lost = [stage for stage in self._held if stage.backend.lost]
        self._forget_cache_of(lost)
        self._held = [stage for stage in self._held if stage not in lost]
        for stage in lost:
            self._note("stage lost", stage.size)
        return self._used is not None and self._used[0] in lost

    async def close(self) -> None:
        """Lets go of everything, behind whatever still computes with it."""
        if self._hold is not None:
            self._hold.superseded = True
        self._wanted, self._used = (), None
        await self._drop_unwanted()

    def _begin(self, model: ModelRef, stages: Sequence[StageSpec]) -> _Hold:
        before, hold = self._hold, _Hold(model, tuple(stages))
        if before is not None:
            before.superseded = True
        hold.task = asyncio.create_task(self._run(hold, before))
        hold.task.add_done_callback(_note_failure)
        self._hold = hold
        return hold

    async def _run(self, hold: _Hold, before: _Hold | None) -> tuple[StageHolding, ...]:
        try:
            if before is not None:
                await asyncio.wait((before.task,))
            sizes = await _in_thread(lambda: self._measure(hold))
            used = self._used[1] if self._used is not None else None
            fitting = self._memory.fitting(sizes, used)
            hold.check()
            # Let go at once, so that no formation counts on it; and before new weights come, for
            # memory may not suffice for both.
            self._wanted = tuple(s for s, fits in zip(sizes, fitting, strict=True) if fits)
            there = [stage.size for stage in self.held]
            if self._used is None and not all(size in there for size in self._wanted):
                self._end_cache()
            await self._drop_unwanted()
            for size, fits in zip(sizes, fitting, strict=True):
                hold.before = hold.so_far
                if fits:
                    await self._load(hold, size)
                else:
                    await self._prefetch(hold, size)
        finally:
            if self._hold is hold:
                self._hold = None
        held = {stage.spec: stage for stage in self.held if stage.size in self._wanted}
        return tuple(
            self._holding(held[spec])
            if spec in held
            else StageHolding(model=hold.model, spec=spec, cached=True)
            for spec in hold.stages
        )

    def _measure(self, hold: _Hold) -> list[StageSize]:
        sizes = []
        for spec in hold.stages:
            hold.check()
            sizes.append(self._loader.measure(hold.model, spec))
        return sizes

    async def _load(self, hold: _Hold, size: StageSize) -> None:
        if any(stage.size == size for stage in self.held):
            return
        niceness = NICENESS if self._used is not None else 0

        def load() -> StageBackend:
            with telemetry.span("engine.load", attributes=_told(size)):
                return self._loader.load(size.model, size.spec, hold.progress)

        backend = await _in_thread(load, niceness)
        self._held.append(HeldStage(size, backend))
        self._note("stage loaded", size)

    async def _prefetch(self, hold: _Hold, size: StageSize) -> None:
        niceness = NICENESS if self._used is not None else 0
        await _in_thread(
            lambda: self._loader.prefetch(size.model, size.spec, hold.progress), niceness
        )
        self._note("stage fetched into the node's store", size)

    def _drop_unwanted(self) -> asyncio.Future[None]:
        """Now, as far as others can see; memory follows, behind whatever still computes."""
        used = self._used[0] if self._used is not None else None
        dropped = [s for s in self._held if s.size not in self._wanted and s is not used]
        self._forget_cache_of(dropped)
        self._held = [stage for stage in self._held if stage not in dropped]
        kept: dict[ModelRef, set[int]] = {}
        for size in (*self._wanted, *(stage.size for stage in self._held)):
            if size.spec.tp_degree == 1:  # others share their layers with nobody
                kept.setdefault(size.model, set()).update(size.layer_bytes)

        def let_go() -> None:
            for stage in dropped:
                stage.backend.close()
            self._loader.retain(kept)

        for stage in dropped:
            self._note("stage dropped", stage.size)
        return self._compute.run(let_go)

    def _cache_of(self, stage: HeldStage, kv_blocks: int, numerics_class: str) -> StageCache:
        if self._cache is not None:
            whose, cache = self._cache
            same = (cache.kv_blocks, cache.numerics_class) == (kv_blocks, numerics_class)
            if whose is stage and same:
                return cache
            self._end_cache()
        cache = StageCache(stage.backend, self._compute, kv_blocks, numerics_class)
        self._cache = (stage, cache)
        return cache

    def _end_cache(self) -> None:
        if self._cache is not None:
            (_, cache), self._cache = self._cache, None
            cache.taken = True  # nothing more is laid there
            self._compute.run(cache.end)

    def _forget_cache_of(self, stages: Collection[HeldStage]) -> None:
        """It goes with its stage."""
        if self._cache is not None and self._cache[0] in stages:
            self._cache[1].taken = True
            self._cache = None

    def _holding(self, stage: HeldStage) -> StageHolding:
        return StageHolding(
            stage.model,
            stage.spec,
            held=True,
            kv_blocks=self.kv_blocks(stage),
            numerics_class=stage.backend.facts.numerics_class,
        )

    @staticmethod
    def _note(what: str, size: StageSize) -> None:
        _log.info(what, extra=_told(size))


def _told(size: StageSize) -> dict[str, str | int | float | bool]:
    layers = f"[{size.layers.start}, {size.layers.end})"
    return {"layers": layers, "tp_degree": size.spec.tp_degree, "model": size.model.model_id}


def _check(stages: Sequence[StageSpec]) -> None:
    if len(stages) > MOST_STAGES:
        raise InvalidArgument(f"at most {MOST_STAGES} stages at a time", field="stages")
    if len(set(stages)) < len(stages):
        raise InvalidArgument("a stage is asked for twice", field="stages")
    if any(stage.tp_degree < 1 for stage in stages):
        raise InvalidArgument("1 at least", field="stages.tp_degree")


def _let_go(fault: BaseException | None) -> None:
    """Weights that a load had are in frames that its error knows, and the error lives for long."""
    while fault is not None:
        traceback.clear_frames(fault.__traceback__)
        fault = fault.__cause__ or fault.__context__


async def _in_thread(work: Callable[[], T], niceness: int = 0) -> T:
    """In a thread of its own, that no end of the process waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else settled())

    def run() -> None:
        try:
            if niceness and sys.platform == "linux":  # where a thread has one of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
            result = work()
        except Exception as error:
            fault = error
            _let_go(fault)
            settle(lambda: done.set_exception(fault))
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _note_failure(task: asyncio.Task[tuple[StageHolding, ...]]) -> None:
    """The caller may be gone by now."""
    if not task.cancelled() and (error := task.exception()) is not None:
        level = logging.INFO if isinstance(error, Superseded) else logging.WARNING
        _log.log(level, "hold failed", extra={"why": str(error) or type(error).__name__})
