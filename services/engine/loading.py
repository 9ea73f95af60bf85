"""Which layers the process holds, and how it comes to hold others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from services.common.errors import Aborted, InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.engine.backend import StageBackend
from services.engine.compute import Compute

_log = logging.getLogger(__name__)
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Bytes in memory so far, bytes in all; called from any thread."""


class StageLoader(Protocol):
    """Makes a backend from stored weights; blocking, run in a thread of its own."""

    def load(self, model: ModelRef, layers: LayerRange, progress: Progress) -> StageBackend:
        """Raises NotFound, InvalidArgument, FailedPrecondition, DataLoss or Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage in memory."""

    model: ModelRef
    layers: LayerRange
    backend: StageBackend


@dataclass(slots=True)
class _Loading:
    model: ModelRef
    layers: LayerRange
    task: asyncio.Task[LoadedStage]
    so_far: tuple[int, int] = (0, 0)


class Weights:
    """At most one stage in memory. A load goes on when its caller is gone; asked for again, it is
    the same load."""

    def __init__(self, loader: StageLoader, compute: Compute, *, report_s: float = 0.5) -> None:
        self._loader = loader
        self._compute = compute
        self._report_s = report_s
        self._loading: _Loading | None = None
        self.held: LoadedStage | None = None

    async def load(
        self, model: ModelRef, layers: LayerRange, tp_degree: int
    ) -> AsyncIterator[tuple[int, int]]:
        """Progress until `held` is what was asked for. Raises Aborted when another load runs."""
        if tp_degree != 1:
            raise InvalidArgument("this engine runs a stage on one rank only", field="tp_degree")
        if self.held is not None and (self.held.model, self.held.layers) == (model, layers):
            return
        loading = self._loading
        if loading is None:
            loading = self._begin(model, layers)
        elif (loading.model, loading.layers) != (model, layers):
            raise Aborted("another load is running", field="layers")
        while not loading.task.done():
            yield loading.so_far
            await asyncio.wait((loading.task,), timeout=self._report_s)
        loading.task.result()

    def _begin(self, model: ModelRef, layers: LayerRange) -> _Loading:
        # Let go at once, so that no formation counts on it; and before the new weights come, for
        # memory may not suffice for both.
        before, self.held = self.held, None
        task = asyncio.create_task(self._run(before, model, layers))
        task.add_done_callback(_note_failure)
        self._loading = _Loading(model, layers, task)
        return self._loading

    async def _run(
        self, before: LoadedStage | None, model: ModelRef, layers: LayerRange
    ) -> LoadedStage:
        def progress(done_bytes: int, total_bytes: int) -> None:
            if self._loading is not None:
                self._loading.so_far = (done_bytes, total_bytes)

        try:
            if before is not None:
                await self._compute.run(before.backend.close)
            backend = await _in_thread(lambda: self._loader.load(model, layers, progress))
        finally:
            self._loading = None
        self.held = LoadedStage(model, layers, backend)
        _log.info(
            "stage loaded",
            extra={"layers": f"[{layers.start}, {layers.end})", "model": model.model_id},
        )
        return self.held

    @property
    def loading(self) -> bool:
        """Some thread loads."""
        return self._loading is not None

    async def close(self) -> None:
        """Lets go of what is held, behind whatever still computes with it."""
        if self.held is not None:
            backend, self.held = self.held.backend, None
            await self._compute.run(backend.close)


async def _in_thread(work: Callable[[], T]) -> T:
    """In a thread of its own, that no end of the process waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else settled())

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            fault = error
            settle(lambda: done.set_exception(fault))
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _note_failure(task: asyncio.Task[LoadedStage]) -> None:
    """The caller may be gone by now."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("load failed", extra={"why": str(error) or type(error).__name__})
