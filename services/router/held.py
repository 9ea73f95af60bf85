"""Generations that the controller holds: found again, ended and deleted by their name."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from services.common import wire
from services.common.errors import (
    DeadlineExceeded,
    NotFound,
    OutOfRange,
    ShuntError,
    Unavailable,
)
from services.common.exchange import GenerationState, GenerationView
from services.common.generation import CancelReason
from services.common.tenants import NOBODY, Tenant
from services.router.ask import Ask
from services.router.cancels import Cancels
from services.router.controller import ControllerClient
from services.router.core.actions import SendCancel
from services.router.session import Session
from services.router.settings import RouterSettings

_DRAWN_ID = re.compile(r"g([0-9a-f]{8})[0-9a-f]{24}")
_YOUNG_S = 5.0
"""A generation of this age may not have reached the journal yet."""
_YOUNG_WAIT_S = 1.0
_LOOK_S = 0.1


class Expired(OutOfRange):
    """The journal has let this generation go."""


class Held:
    """Asks the controller, and tells the sessions of this router that read what is asked about."""

    def __init__(
        self,
        controller: ControllerClient,
        cancels: Cancels,
        settings: RouterSettings,
        following: Callable[[str], Sequence[Session]],
    ) -> None:
        """`following` gives the sessions of a generation at this router."""
        self._controller = controller
        self._cancels = cancels
        self._settings = settings
        self._following = following

    async def view(self, generation_id: str, tenant: Tenant | None = NOBODY) -> GenerationView:
        """What the journal holds; waits a little for one just begun, and for the controller.
        Another tenant's is not there, by the same words and after the same time; None is the mesh
        itself, which may read all.

        Raises InvalidArgument for a name that cannot be, NotFound, Expired, Unavailable.
        """
        wire.generation_id_from(generation_id)
        drawn = _DRAWN_ID.fullmatch(generation_id)
        age_s = time.time() - int(drawn[1], 16) if drawn else None
        young = age_s is not None and age_s < _YOUNG_S
        deadline_s = time.monotonic() + self._settings.resume_timeout_s
        young_until_s = time.monotonic() + (_YOUNG_WAIT_S if young else 0.0)
        while True:
            try:
                view = await self._controller.generation(generation_id)
                if tenant is not None:
                    _check_owner(view, tenant)
                return view
            except NotFound:
                if age_s is not None and age_s > self._settings.generation_retention_s:
                    raise Expired("the generation is no longer kept", field="id") from None
                if time.monotonic() >= young_until_s:
                    raise
            except (Unavailable, DeadlineExceeded):
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def begun_before(self, ask: Ask) -> GenerationView | None:
        """The generation that an ask is the repetition of; None where it is the first. Raises
        Unavailable and DeadlineExceeded only for a name of the client's own."""
        try:
            if ask.generation_id:
                return await self._controller.generation(ask.generation_id)
            if ask.is_retry:
                return await self._controller.claim(ask.digest)
        except NotFound:
            return None
        except (Unavailable, DeadlineExceeded):
            if ask.generation_id:
                raise
            return None  # rather a second generation than no answer
        return None

    async def cancel(self, generation_id: str, tenant: Tenant = NOBODY) -> None:
        """Ends a generation for good, where it has not ended; taken when this returns. Raises
        InvalidArgument, NotFound for another tenant's, Unavailable."""
        wire.generation_id_from(generation_id)
        if tenant.name:
            await self._check_not_anothers(generation_id, tenant)
        await self._controller.cancel(generation_id, CancelReason.CLIENT, tenant=tenant.name)
        view = None
        with suppress(ShuntError):  # its head learns from the controller
            view = await self._controller.generation(generation_id)
        if view is not None and view.state is GenerationState.FINISHED:
            return  # it had ended: whoever reads it is about to hear so
        sessions = self._following(generation_id)
        for session in sessions:
            session.cancel()
        if not sessions and view is not None and view.head is not None:
            cancel = SendCancel(generation_id, None, CancelReason.CLIENT, None, view.head)
            self._cancels.tell_head(cancel, contextvars.copy_context())

    async def delete(self, generation_id: str) -> None:
        """Ends a generation and deletes all of it; done when this returns. Raises
        InvalidArgument, Unavailable."""
        await self._controller.delete(wire.generation_id_from(generation_id))
        for session in self._following(generation_id):
            session.cancel()

    async def _check_not_anothers(self, generation_id: str, tenant: Tenant) -> None:
        """Raises NotFound. What is kept for long the ledger does not know: only its view tells."""
        try:
            view = await self._controller.generation(generation_id)
        except NotFound:
            return
        _check_owner(view, tenant)


def _check_owner(view: GenerationView, tenant: Tenant) -> None:
    """Raises NotFound for another tenant's, in the controller's words for one that never was."""
    if view.request.tenant != tenant.name:
        raise NotFound("no such generation", field="generation_id")
