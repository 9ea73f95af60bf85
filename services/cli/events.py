"""`shunt events`: the controller's event log, as it is or as it grows.

A controller that restarts goes on with what its journal holds, which may lack the newest events of
the one before. So a reader that comes back asks for events that it has seen, compares, and goes on
behind the last that is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import grpc
from shuntserve.controller.v1 import controller_pb2

from services.cli.controller_calls import CALL_S, ControllerAwayError, controller_of
from services.cli.event_lines import Event
from services.cli.mesh_directory import MeshDirectory, MeshError

COMPARED = 256
"""Newest events that are looked at again behind a restart."""
STREAM_S = 600.0
"""A stream that is followed is opened anew when it is so old."""
PAUSE_S = 0.2
_MENDED_BY_TIME = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
)
Complain = Callable[[str], None]


class Reading:
    """How far somebody has read the log; what is amiss with it is told."""

    def __init__(self, since: int, complain: Complain) -> None:
        """`since` is the first number wanted; 0 for whatever there is."""
        self._complain = complain
        self._next = since
        self._seen: dict[int, Event] = {}

    @property
    def from_number(self) -> int:
        """What to ask the controller for."""
        return min(self._seen, default=self._next)

    def is_new(self, event: Event) -> bool:
        """The next event of a stream: whether it was not read before."""
        number = event.number
        if self._seen.get(number) == event:
            return False
        if number < self._next:
            self._complain(f"the newest events were lost with a controller: {number} is another")
            self._seen = {n: seen for n, seen in self._seen.items() if n < number}
        elif 0 < self._next < number:
            self._complain(f"events {self._next} to {number - 1} are no longer kept")
        self._next = number + 1
        self._seen[number] = event
        while len(self._seen) > COMPARED:
            del self._seen[min(self._seen)]
        return True


async def read_events(
    directory: MeshDirectory, since: int, follow: bool, complain: Complain
) -> AsyncGenerator[Event, None]:
    """Each event once, from a number on. `follow` goes on as the log grows, over restarts of the
    controller, until the mesh is gone. Raises MeshError."""
    reading = Reading(since, complain)
    away = False
    while True:
        try:
            async with controller_of(directory) as stub:
                call = stub.WatchEvents(
                    controller_pb2.WatchEventsRequest(
                        from_number=reading.from_number, no_wait=not follow
                    ),
                    timeout=STREAM_S if follow else CALL_S,
                )
                try:
                    async for event in call:
                        away = False
                        if reading.is_new(event):
                            yield event
                finally:
                    call.cancel()
        except grpc.aio.AioRpcError as error:
            if not follow or error.code() not in _MENDED_BY_TIME:
                raise MeshError(
                    f"the controller has no events to tell: {error.details()}"
                ) from None
            silent = error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        except ControllerAwayError:
            if not follow:
                raise
            silent = True
        else:
            silent = False
        if silent and not away:
            away = True
            complain("the controller does not answer; waiting for it")
        if not follow:
            return
        await asyncio.sleep(PAUSE_S)
