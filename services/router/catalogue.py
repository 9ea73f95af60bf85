"""The models this router has heard of, loaded once each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Sequence

from services.common.errors import (
    FailedPrecondition,
    ModelUnusable,
    NotFound,
    ShuntError,
    Unavailable,
)
from services.common.exchange import Route
from services.common.generation import ModelRef
from services.router.model import ServedModel
from services.router.model_files import ModelFiles

_log = logging.getLogger(__name__)
MAX_MODELS = 64


class ModelCatalogue:
    """Knows which version a name stands for, and when it was seen first."""

    def __init__(
        self, fetch: Callable[[ModelRef], Awaitable[ModelFiles]], clock: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._models: dict[str, ServedModel] = {}
        self._loads: dict[str, asyncio.Task[ServedModel]] = {}
        self._current: dict[str, ModelRef] = {}
        self._positions: dict[str, int] = {}
        self.first_seen: dict[str, int] = {}
        """Wall-clock seconds, by name."""
        self.heard = False
        """A pipeline of some model was ready at least once."""
        self._faults: dict[str, str] = {}
        """Of models whose files cannot be used, by digest."""

    def update(self, routes: Sequence[Route], asleep: Sequence[ModelRef] = ()) -> None:
        """Takes the names from the routes, and from what gets one when it is asked for. A name that
        has no route now is still known, until its place is needed."""
        served = {model.model_id: model for model in asleep}
        served |= {route.model.model_id: route.model for route in routes}
        for name, ref in served.items():
            if name not in self._current and not self._has_place(served):
                continue
            self._current[name] = ref
            self.first_seen.setdefault(name, int(self._clock()))
        for name in served:
            held = [r.max_positions for r in routes if r.model.model_id == name]
            self._positions[name] = min((n for n in held if n > 0), default=0)
        self.heard = bool(self._current)

    def _has_place(self, served: Container[str]) -> bool:
        """Forgets the name known for longest that is not served, if it must."""
        if len(self._current) < MAX_MODELS:
            return True
        left = next((name for name in self._current if name not in served), None)
        if left is None:
            return False
        del self._current[left]
        self.first_seen.pop(left)
        self._positions.pop(left, None)
        return True

    def current(self, name: str) -> ModelRef:
        """The version a name stands for. Raises NotFound."""
        ref = self._current.get(name)
        if ref is None:
            raise NotFound("no model of that name is served here", field="model")
        return ref

    def max_positions(self, name: str, model: ServedModel) -> int:
        """Positions that model and every pipeline can hold."""
        return min(model.facts.max_positions, self._positions.get(name) or 1 << 62)

    def route_positions(self, name: str) -> int:
        """Positions that every pipeline of the model holds; 0 while it has none."""
        return self._positions.get(name, 0)

    def why_not(self, ref: ModelRef) -> ShuntError | None:
        """Why a model cannot be asked now; None when it can."""
        if ref.digest in self._models:
            return None
        if ref.digest in self._faults:
            return ModelUnusable(self._faults[ref.digest], field="model")
        return Unavailable(f"{ref.model_id}: its files have not been read yet", field="model")

    async def load(self, ref: ModelRef) -> ServedModel:
        """The model, fetched when it is not here yet. Raises what fetching raises, and the next
        caller tries again; ModelUnusable for files that cannot be used: they stay what they are."""
        if ref.digest in self._faults:
            raise ModelUnusable(self._faults[ref.digest], field="model")
        model = self._models.get(ref.digest)
        if model is not None:
            return model
        task = self._loads.get(ref.digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(ref))
            self._loads[ref.digest] = task
            task.add_done_callback(lambda _: self._loads.pop(ref.digest, None))
        return await asyncio.shield(task)

    async def _load(self, ref: ModelRef) -> ServedModel:
        try:
            model = await self._read(ref)
        except FailedPrecondition as error:
            if len(self._faults) >= MAX_MODELS:
                self._faults.pop(next(iter(self._faults)))
            self._faults[ref.digest] = f"{ref.model_id}: {error.message}"
            raise ModelUnusable(self._faults[ref.digest], field="model") from error
        if len(self._models) >= MAX_MODELS:
            self._models.pop(next(iter(self._models)))
        self._models[ref.digest] = model
        _log.info("model loaded", extra={"model": ref.model_id, "digest": ref.digest[:12]})
        return model

    async def _read(self, ref: ModelRef) -> ServedModel:
        files = await self._fetch(ref)
        try:
            return await asyncio.to_thread(ServedModel, files)
        except ShuntError:
            raise
        except Exception as error:  # whatever stands in a model's files, the router lives
            raise FailedPrecondition(
                f"the model's files are not understood: {type(error).__name__}"
            ) from error

    async def preload(self) -> bool:
        """Loads what is current and not here yet. False when another attempt may help."""
        done = True
        for ref in list(self._current.values()):
            if ref.digest in self._models or ref.digest in self._faults:
                continue
            try:
                await self.load(ref)
            except ShuntError as error:
                _log.error("model not loaded", extra={"reason": error.message})
                done = done and error.permanent
        return done
