"""Last words on their way: cancels to the controller until it takes them; cancels and
detaches to the head, once."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from typing import Any

from services.common import channels
from services.common.errors import DeadlineExceeded, ShuntError, Unavailable
from services.router.controller import ControllerClient
from services.router.core.actions import SendCancel, SendDetach
from services.router.heads import Heads
from services.router.slices import Slices

_log = logging.getLogger(__name__)
MAX_WAITING = 4096
CLOSED_AT_ONCE = 2
"""Sessions of a crowd that leaves; what comes in meanwhile waits for no more of them."""
MAX_TOLD = 512
"""Readers that left, in one message."""
RETRY_S = 0.2
RETRY_MAX_S = 5.0


class Cancels:
    """Outlives the sessions that ask; gives one up after `recover_s`."""

    def __init__(self, controller: ControllerClient, heads: Heads, recover_s: float) -> None:
        self._controller = controller
        self._heads = heads
        self._recover_s = recover_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[str, list[SendDetach]] = {}
        """What the head at an address is told of in this turn of the event loop."""
        self.turns = Slices(CLOSED_AT_ONCE)
        """When sessions that their clients have left are closed."""

    def send(self, cancel: SendCancel, context: contextvars.Context) -> None:
        """Starts one; one too many is dropped, for an unread generation parks by itself."""
        if len(self._tasks) >= MAX_WAITING:
            _log.warning("too many cancels wait", extra={"generation_id": cancel.generation_id})
            return
        self._start(self._tell_controller(cancel), context)
        if cancel.head is not None:
            self.tell_head(cancel, context)

    def tell_head(self, cancel: SendCancel, context: contextvars.Context) -> None:
        """Only the head, for a cancel that the controller has taken."""
        self._start(self._tell_head(cancel), context)

    def detach(self, detach: SendDetach, context: contextvars.Context) -> None:
        """Tells the head, of a crowd in a few messages; one too many is dropped."""
        address = detach.head.address
        left = self._left.get(address)
        if left is not None:
            if len(left) < MAX_WAITING:
                left.append(detach)
        elif len(self._tasks) < MAX_WAITING:
            self._left[address] = [detach]
            self._start(self._detach(address), context)

    def _start(self, work: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        task = asyncio.get_running_loop().create_task(work, context=context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_controller(self, cancel: SendCancel) -> None:
        channels.hand_on_deadline(None)  # the client's deadline does not end this
        pause_s = RETRY_S
        try:
            async with asyncio.timeout(self._recover_s):
                while not await self._told(cancel):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
        except TimeoutError:
            _log.warning("a cancel was given up", extra={"generation_id": cancel.generation_id})

    async def _told(self, cancel: SendCancel) -> bool:
        try:
            await self._controller.cancel(
                cancel.generation_id, cancel.reason, cancel.choice, cancel.length
            )
        except (Unavailable, DeadlineExceeded):
            return False
        except ShuntError as error:
            _log.warning("a cancel was refused", extra={"reason": error.message})
        return True

    async def _tell_head(self, cancel: SendCancel) -> None:
        assert cancel.head is not None
        try:
            await self._heads.cancel(
                cancel.head, cancel.generation_id, cancel.choice, cancel.reason
            )
        except ShuntError as error:
            _log.info("a head was not told", extra={"reason": error.message})

    async def _detach(self, address: str) -> None:
        """Tells a head of all that have left by now. No message waits for another's answer, which
        comes late where the whole crowd has left: somebody waits for what it has."""
        channels.hand_on_deadline(None)
        left = self._left.pop(address)
        messages = (left[i : i + MAX_TOLD] for i in range(0, len(left), MAX_TOLD))
        await asyncio.gather(*(self._tell_left(address, message) for message in messages))

    async def _tell_left(self, address: str, left: list[SendDetach]) -> None:
        try:
            await self._heads.detach(address, left)
        except ShuntError as error:
            _log.info("a head was not told", extra={"reason": error.message})

    async def close(self) -> None:
        """Gives up what still waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
