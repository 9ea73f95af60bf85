"""A channel that looks its peer up again for as long as it has failed.

gRPC asks for a name that had no address less and less often, up to two minutes apart, and lets
nobody change that. A new channel asks at once: beside one that failed such are tried until one
stands, and calls go over that one from then on. Until then they fail as quickly as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

RENEWAL_INTERVAL_S = 1.0
"""Between two looks, and at most what one may take to connect."""
INTEREST_S = 60.0
"""Looks go on for this long after the last call; the next one begins them again."""
OLD_CALLS_S = 600.0
"""Calls that live on over an old connection, of a peer that drains, have this long to end."""
_POLLS = 20
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_READY = grpc.ChannelConnectivity.READY


class RenewedChannel(grpc.aio.Channel):
    """Calls over the newest of the channels that `open_one` opens."""

    def __init__(self, open_one: Callable[[], grpc.aio.Channel]) -> None:
        self._open_one = open_one
        self._channel = open_one()
        self._renewal: asyncio.Task[None] | None = None
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._called_s = 0.0

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._callable("unary_unary", method, *arguments, **options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._callable("unary_stream", method, *arguments, **options)

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._callable("stream_unary", method, *arguments, **options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._callable("stream_stream", method, *arguments, **options)

    def _callable(self, kind: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        channel = self._channel
        made = getattr(channel, kind)(*arguments, **options)

        def call(*request: Any, **how: Any) -> Any:
            nonlocal channel, made
            self._look()
            if channel is not self._channel:
                channel = self._channel
                made = getattr(channel, kind)(*arguments, **options)
            return made(*request, **how)

        return call

    def _look(self) -> None:
        """Begins to renew a channel that a call finds failed."""
        self._called_s = time.monotonic()
        renewing = self._renewal is not None and not self._renewal.done()
        if not renewing and self._channel.get_state() is _FAILED:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while time.monotonic() - self._called_s < INTEREST_S:
            await asyncio.sleep(RENEWAL_INTERVAL_S)
            if self._channel.get_state() is not _FAILED:
                return
            unused = self._open_one()
            try:
                if await _stands(unused):
                    unused, self._channel = self._channel, unused
                    return
            finally:
                self._retire(unused)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.get_running_loop().create_task(channel.close(OLD_CALLS_S))
        self._retired[closing] = channel
        closing.add_done_callback(lambda task: self._retired.pop(task, None))

    async def close(self, grace: float | None = None) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        retired = dict(self._retired)
        for closing in retired:
            closing.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        channels = [self._channel, *retired.values()]
        await asyncio.gather(*(channel.close(grace) for channel in channels))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _stands(channel: grpc.aio.Channel) -> bool:
    """Whether it connects in time."""
    for _ in range(_POLLS):
        state = channel.get_state(try_to_connect=True)
        if state in (_READY, _FAILED):
            return state is _READY
        await asyncio.sleep(RENEWAL_INTERVAL_S / _POLLS)
    return False
