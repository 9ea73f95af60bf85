"""Which of several controllers leads, as far as this router can tell, and calls to that one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import channels
from services.common.errors import Unavailable
from services.common.statuses import from_rpc_error

T = TypeVar("T")


class Controllers:
    """The controller leads that was the last to begin a stream of routes, for standbys have none;
    while none has one, calls walk on from whoever refuses them."""

    def __init__(self, stubs: Sequence[controller_pb2_grpc.ControllerServiceAsyncStub]) -> None:
        self.stubs = tuple(stubs)
        self._turn = 0
        self._streams: list[int] = []
        """Those that have a stream, in the order these began."""
        self._moved = asyncio.Event()

    @property
    def leader(self) -> int:
        """Index of the one that is taken for the leader."""
        return self._turn

    def heard(self, index: int) -> bool:
        """It sent routes; whether they are the leader's."""
        if index not in self._streams:
            self._streams.append(index)
            self._turn_to(index)
        return index == self._streams[-1]

    def lost(self, index: int) -> int | None:
        """Its stream ended; the one whose routes count from now on, if there is another."""
        led = self._streams[-1:] == [index]
        if index in self._streams:
            self._streams.remove(index)
        if not led or not self._streams:
            return None
        self._turn_to(self._streams[-1])
        return self._turn

    async def call(
        self,
        make: Callable[[controller_pb2_grpc.ControllerServiceAsyncStub, float], Awaitable[T]],
        limit_s: float,
    ) -> T:
        """What the leader answers; `make` is given its stub and the time that is left. Raises the
        domain error of the call; one that cannot be answered is asked of each, at most once."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + channels.timeout(limit_s)
        refused = set[int]()
        while True:
            turn = self._turn
            try:
                return await self._unless_moved(
                    make(self.stubs[turn], max(0.0, give_up_s - loop.time()))
                )
            except _MovedError:
                refused.discard(self._turn)
            except grpc.RpcError as error:
                known = from_rpc_error(error)
                refused.add(turn)
                if not isinstance(known, Unavailable) or len(refused) == len(self.stubs):
                    raise known from error
                if turn == self._turn:
                    self._turn_to((turn + 1) % len(self.stubs))

    def _turn_to(self, index: int) -> None:
        if index != self._turn:
            self._turn = index
            self._moved.set()
            self._moved = asyncio.Event()

    async def _unless_moved(self, answer: Awaitable[T]) -> T:
        """Raises _MovedError when another one leads before the answer is there: who was stopped
        never gives it."""
        if len(self.stubs) == 1:
            return await answer
        asked = asyncio.ensure_future(answer)
        moved = asyncio.ensure_future(self._moved.wait())
        try:
            await asyncio.wait((asked, moved), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise _MovedError
        finally:
            for waiting in (asked, moved):
                waiting.cancel()
            await asyncio.gather(asked, moved, return_exceptions=True)


class _MovedError(Exception):
    """Another controller leads."""
