"""A channel that looks its peer up again for as long as it has failed.

gRPC asks for a name that had no address less and less often, up to two minutes apart, and lets
nobody change that. A new channel asks at once: beside one that failed such are tried until one
stands, and calls go over that one from then on. Until then they fail as quickly as ever.

A channel is opened anew, too, when what it was opened with is not the newest any more, as its
certificate: new calls go over the new one at once, open ones go on over theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import grpc

RENEWAL_INTERVAL_S = 1.0
"""Between two looks, and at most what one may take to connect."""
INTEREST_S = 60.0
"""Looks go on for this long after the last call; the next one begins them again."""
OLD_CALLS_S = 600.0
"""Calls that live on over an old connection, of a peer that drains, have this long to end."""
OLD_CERTIFICATE_S = 7 * 86400.0
"""As long may those live that go on over a connection whose certificate is an old one."""
_POLLS = 20
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_READY = grpc.ChannelConnectivity.READY
Opener = TypeVar("Opener")


class RenewedChannel(grpc.aio.Channel, Generic[Opener]):
    """Calls over the newest of the channels that `open_one` opens, with what is `newest`."""

    def __init__(
        self, open_one: Callable[[Opener], grpc.aio.Channel], newest: Callable[[], Opener]
    ) -> None:
        """`newest` is asked before every call; another object than before is a newer one."""
        self._open_one = open_one
        self._newest = newest
        self._opened_with = newest()
        self._channel = open_one(self._opened_with)
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
        """Replaces a channel of before, and begins to renew one that a call finds failed."""
        self._called_s = time.monotonic()
        newest = self._newest()
        if newest is not self._opened_with:
            if self._renewal is not None:
                self._renewal.cancel()
            self._retire(self._channel, OLD_CERTIFICATE_S)
            self._opened_with, self._channel = newest, self._open_one(newest)
        renewing = self._renewal is not None and not self._renewal.done()
        if not renewing and self._channel.get_state() is _FAILED:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while time.monotonic() - self._called_s < INTEREST_S:
            await asyncio.sleep(RENEWAL_INTERVAL_S)
            if self._channel.get_state() is not _FAILED:
                return
            unused = self._open_one(self._opened_with)
            try:
                if await _stands(unused):
                    unused, self._channel = self._channel, unused
                    return
            finally:
                self._retire(unused, OLD_CALLS_S)

    def _retire(self, channel: grpc.aio.Channel, grace_s: float) -> None:
        closing = asyncio.get_running_loop().create_task(channel.close(grace_s))
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
