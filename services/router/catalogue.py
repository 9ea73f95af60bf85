"""The models this router has heard of, loaded once each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from services.common.errors import (
    FailedPrecondition,
    ModelUnusable,
    NotFound,
    ShuntError,
    Unavailable,
)
from services.common.exchange import DeployedModel, Route
from services.common.generation import ModelRef
from services.router.grammar_checks import GrammarChecks
from services.router.model import ServedModel
from services.router.model_files import ModelFiles

_log = logging.getLogger(__name__)
MAX_MODELS = 64


def no_such_model() -> NotFound:
    """What is said of every model that is not served, or not to everybody."""
    return NotFound("no model of that name is served here", field="model")


class ModelCatalogue:
    """Knows which version a name stands for, and when it was seen first."""

    def __init__(
        self,
        fetch: Callable[[ModelRef], Awaitable[ModelFiles]],
        clock: Callable[[], float],
        checks: GrammarChecks,
    ) -> None:
        self._fetch = fetch
        self._checks = checks
        self._clock = clock
        self._models: dict[str, ServedModel] = {}
        self._loads: dict[str, asyncio.Task[ServedModel]] = {}
        self._deployed: dict[str, DeployedModel] = {}
        self._positions: dict[str, int] = {}
        self.first_seen: dict[str, int] = {}
        """Wall-clock seconds, by name: when a pipeline of it was ready first."""
        self.heard = False
        """The controller has told what is deployed."""
        self._faults: dict[str, str] = {}
        """Of models whose files cannot be used, by digest."""

    def update(self, routes: Sequence[Route], deployed: Sequence[DeployedModel]) -> None:
        """Takes the names from what is deployed. Of one that has no route now it is still known
        what its pipelines hold."""
        self._deployed = {one.model.model_id: one for one in deployed[:MAX_MODELS]}
        for name in set(self.first_seen) - self._deployed.keys():
            del self.first_seen[name]
            self._positions.pop(name, None)
        for name in (one.model.model_id for one in deployed[:MAX_MODELS] if one.asleep):
            self.first_seen.setdefault(name, int(self._clock()))
        for name in {route.model.model_id for route in routes} & self._deployed.keys():
            self.first_seen.setdefault(name, int(self._clock()))
            held = [r.max_positions for r in routes if r.model.model_id == name]
            self._positions[name] = min((n for n in held if n > 0), default=0)
        self.heard = self.heard or bool(self._deployed)

    def names(self) -> list[str]:
        """Models that are deployed and had a pipeline, or get one when they are asked for, the
        first deployed first."""
        return [name for name in self._deployed if name in self.first_seen]

    def deployed(self) -> list[ModelRef]:
        """Versions that are deployed."""
        return [one.model for one in self._deployed.values()]

    def asleep(self) -> list[ModelRef]:
        """Those that get a pipeline when they are asked for."""
        return [one.model for one in self._deployed.values() if one.asleep]

    def unusable(self, name: str) -> ShuntError | None:
        """Why no pipeline will ever take requests for a model; None when one does or may."""
        deployed = self._deployed.get(name)
        if deployed is None or not deployed.unusable:
            return None
        message = f"no pipeline can run the model: {deployed.unusable}"
        return ModelUnusable(message, field="model")

    def current(self, name: str) -> ModelRef:
        """The version a name stands for. Raises NotFound."""
        deployed = self._deployed.get(name)
        if deployed is None:
            raise no_such_model()
        return deployed.model

    def loaded(self, name: str) -> ServedModel | None:
        """The version that a name stands for, if its files have been read. Raises NotFound."""
        return self._models.get(self.current(name).digest)

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
            return await asyncio.to_thread(ServedModel, files, self._checks)
        except ShuntError:
            raise
        except Exception as error:  # whatever stands in a model's files, the router lives
            raise FailedPrecondition(
                f"the model's files are not understood: {type(error).__name__}"
            ) from error

    async def preload(self) -> bool:
        """Loads what is deployed and not here yet. False when another attempt may help."""
        done = True
        for ref in self.deployed():
            if ref.digest in self._models or ref.digest in self._faults:
                continue
            try:
                await self.load(ref)
            except ShuntError as error:
                _log.error("model not loaded", extra={"reason": error.message})
                done = done and error.permanent
        return done
