"""Reads what is to run though nobody reads it: only a reader takes a generation to its next head.

Each router asks the controller for such as have lost theirs, with their router or with their head,
and reads on for nobody until they end, or until a client comes to read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from services.common.errors import ShuntError
from services.router.controller import ControllerClient
from services.router.router import Router
from services.router.session import Session

_log = logging.getLogger(__name__)
CLAIM_EVERY_S = 1.0
CLAIMED_AT_ONCE = 32


class Background:
    """Of one router."""

    def __init__(self, router: Router, controller: ControllerClient) -> None:
        self._router = router
        self._controller = controller
        self._reading: dict[asyncio.Task[None], str] = {}
        """Generations that are read, or about to be."""
        self._leaving = False

    async def run(self) -> None:
        """Takes what has no reader, while there is room, until cancelled."""
        try:
            while True:
                await asyncio.sleep(CLAIM_EVERY_S)
                room = self._router.settings.max_streams - self._router.streams
                if room > 0 and not self._leaving:
                    await self._claim(min(room, CLAIMED_AT_ONCE))
        finally:
            self.leave()

    def keep(self, session: Session) -> None:
        """Reads on where a client stopped, or never began."""
        if self._leaving or session.ended:
            session.close()
            return
        session.resumable = True
        session.read_for_nobody()
        self._start(session.generation_id, self._read(session))

    def leave(self) -> None:
        """Lets all of them go: other routers take them."""
        self._leaving = True
        for task in self._reading:
            task.cancel()

    async def _claim(self, at_most: int) -> None:
        try:
            names = await self._controller.claim_background(at_most)
        except ShuntError as error:
            _log.debug("nothing to read claimed", extra={"reason": error.message})
            return
        for name in names:
            if name not in self._reading.values():
                self._start(name, self._take(name))

    def _start(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._reading[task] = name
        task.add_done_callback(self._reading.pop)

    async def _take(self, name: str) -> None:
        try:
            session = await self._router.resume(name, None, tenant=None)
        except ShuntError as error:  # it will be offered again
            _log.info("not read", extra={"generation_id": name, "reason": error.message})
            return
        _log.info("read for nobody", extra={"generation_id": name})
        await self._read(session)

    async def _read(self, session: Session) -> None:
        try:
            while not session.ended:
                session.transcript.take()
                await session.wake.wait()
                session.wake.clear()
        finally:
            session.close()
