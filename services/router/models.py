"""Models as requests use them: by name, for a tenant, waited for, loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from services.common.errors import DataLoss, NotFound, ShuntError, Unavailable
from services.common.exchange import GenerationView
from services.common.generation import ModelRef
from services.common.tenants import Tenant
from services.model.vocabulary import Vocabulary
from services.router.ask import ModelLimits
from services.router.catalogue import ModelCatalogue, no_such_model
from services.router.model import ServedModel
from services.router.settings import RouterSettings

_log = logging.getLogger(__name__)
PRELOAD_AGAIN_S = 1.0


def check_may_use(tenant: Tenant, name: str) -> None:
    """Raises NotFound for a model that is not there for the tenant."""
    if not tenant.may_use(name):
        raise no_such_model()


class Models:
    """Of one router. Routes that change are told by `look`."""

    def __init__(
        self,
        catalogue: ModelCatalogue,
        settings: RouterSettings,
        check_goes_on: Callable[[], None],
    ) -> None:
        """`check_goes_on` raises Unavailable once the router stops: nobody waits any longer."""
        self._catalogue = catalogue
        self._settings = settings
        self._check_goes_on = check_goes_on
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Who waits for a model looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def preload(self) -> None:
        """Loads what is deployed as it comes, until cancelled."""
        while True:
            changed = self._changed
            again_s = None if await self._catalogue.preload() else PRELOAD_AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await changed.wait()

    def names(self, tenant: Tenant) -> list[str]:
        """Models that the tenant can ask for, as the catalogue has them."""
        return [name for name in self._catalogue.names() if tenant.may_use(name)]

    def check(self, name: str, tenant: Tenant) -> None:
        """Raises NotFound for a model that is not deployed, or that is not for the tenant."""
        check_may_use(tenant, name)
        self._catalogue.current(name)

    def check_usable(self, name: str) -> None:
        """Raises NotFound for a model that is not deployed, or not any more, ModelUnusable for one
        that no pipeline will ever run."""
        self._catalogue.current(name)
        unusable = self._catalogue.unusable(name)
        if unusable is not None:
            raise unusable

    def no_pipeline(self, name: str) -> ShuntError:
        """Why a model, or an empty name for any, has no pipeline."""
        unusable = self._catalogue.unusable(name)
        return unusable or Unavailable("no pipeline is ready", retry_after_s=5.0)

    def positions(self, name: str) -> int:
        """What prompt and answer may have together; 0: nobody knows yet. Raises NotFound."""
        model = self._catalogue.loaded(name)
        if model is None:
            return self._catalogue.route_positions(name)
        return self._catalogue.max_positions(name, model)

    def limits(self, name: str, model: ServedModel) -> ModelLimits:
        """Those of the model, of every pipeline of it, and of this router."""
        positions = self._catalogue.max_positions(name, model)
        limit_bytes = self._settings.max_message_bytes
        return replace(model.facts, max_positions=positions, max_message_bytes=limit_bytes)

    async def named(self, name: str) -> ServedModel:
        """The version that the name stands for. Waits for the first word of the controller.
        Raises NotFound, ModelUnusable, Unavailable."""
        if self._catalogue.heard:  # then nearly always nothing is waited for
            self.check_usable(name)
            model = self._catalogue.loaded(name)
            if model is not None:
                return model
        try:
            async with asyncio.timeout(self._settings.route_wait_s):
                while not self._catalogue.heard:
                    self._check_goes_on()
                    await self._changed.wait()
                self.check_usable(name)
                return await self.load(self._catalogue.current(name))
        except TimeoutError:
            raise Unavailable("no model is ready at this router yet", retry_after_s=5.0) from None

    async def load(self, ref: ModelRef) -> ServedModel:
        """This version. Raises ModelUnusable, Unavailable."""
        try:
            return await self._catalogue.load(ref)
        except (NotFound, DataLoss) as error:
            _log.error("a model cannot be read", extra={"reason": error.message})
            raise Unavailable("the model's files cannot be read", field="model") from error

    async def vocabulary(self, view: GenerationView) -> Vocabulary:
        """What ids of a generation mean. Raises Unavailable."""
        return (await self.load(view.request.model)).vocabulary_of(view.request)
