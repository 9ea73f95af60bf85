"""Last words on their way: cancels to the controller until it takes them; cancels and
detaches to the head, once."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
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
CLOSED_AT_ONCE = 8
"""Sessions of a crowd that leaves; what comes in meanwhile waits for no more of them."""
MAX_TOLD = 512
"""Readers that left, in one message."""
TELLING_AT_ONCE = 4
"""Such messages to one head; who leaves meanwhile is in the next."""
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
        """What the head at an address is yet to be told of."""
        self._telling: Counter[str] = Counter()
        """Messages to the head at an address that have no answer yet."""
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
        left = self._left.setdefault(address, [])
        if len(left) < MAX_WAITING:
            left.append(detach)
        if self._telling[address] < TELLING_AT_ONCE:
            self._telling[address] += 1
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
        """Tells a head of all that have left by now, until nobody is left. Several do so at once,
        for an answer comes late where a crowd has left, and somebody waits for what it has."""
        channels.hand_on_deadline(None)
        try:
            while left := self._left[address]:
                self._left[address] = left[MAX_TOLD:]
                try:
                    await self._heads.detach(address, left[:MAX_TOLD])
                except ShuntError as error:
                    _log.info("a head was not told", extra={"reason": error.message})
        finally:
            self._telling[address] -= 1
            if not self._telling[address]:
                del self._telling[address], self._left[address]

    async def close(self) -> None:
        """Gives up what still waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
