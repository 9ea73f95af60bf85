"""Channels to other engines, each kept for as long as it is of use.

A channel is opened with the first call and closed `idle_s` behind the last one, or behind a call
that found its peer gone. Of many that nobody uses the one goes that was left longest ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

Connect = Callable[[str], grpc.aio.Channel]
IDLE_S = 20.0
"""Rounds of one copy, and the copies of one hand-over, follow sooner."""
MOST_IDLE = 64
"""Channels that are kept though nobody uses them."""


@dataclass(slots=True, eq=False)
class _Kept:
    address: str
    channel: grpc.aio.Channel
    users: int = 0
    closes: asyncio.TimerHandle | None = None
    """When nobody has used it for long enough."""


class Peers:
    """Of one process."""

    def __init__(
        self,
        connect: Connect,
        *,
        apart: bool = False,
        idle_s: float = IDLE_S,
        most_idle: int = MOST_IDLE,
    ) -> None:
        """Whoever is `apart` has a channel to himself while he uses it."""
        self._connect = connect
        self._apart = apart
        self._idle_s, self._most_idle = idle_s, most_idle
        self._kept: dict[_Kept, None] = {}
        """Those first that were left longest ago, or are in use the longest."""
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Channels that are open."""
        return len(self._kept)

    @asynccontextmanager
    async def to(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to this peer, for as long as the block lasts."""
        one = self._taken(address)
        try:
            yield one.channel
        finally:
            self._leave(one)

    async def close(self) -> None:
        """Closes all of them, whoever uses them."""
        for one in list(self._kept):
            self._close(one)
        await asyncio.gather(*self._closing)

    def _taken(self, address: str) -> _Kept:
        fit = (one for one in self._kept if one.address == address)
        one = next((one for one in fit if not (self._apart and one.users)), None)
        if one is None:
            one = _Kept(address, self._connect(address))
            self._kept[one] = None
        if one.closes is not None:
            one.closes.cancel()
            one.closes = None
        one.users += 1
        return one

    def _leave(self, one: _Kept) -> None:
        one.users -= 1
        if one.users or one not in self._kept:
            return
        if one.channel.get_state() is not grpc.ChannelConnectivity.READY:
            self._close(one)
            return
        self._kept[one] = self._kept.pop(one)  # it was left last
        one.closes = asyncio.get_running_loop().call_later(self._idle_s, self._close, one)
        idle = [other for other in self._kept if not other.users]
        for other in idle[: -self._most_idle]:
            self._close(other)

    def _close(self, one: _Kept) -> None:
        del self._kept[one]
        if one.closes is not None:
            one.closes.cancel()
        task = asyncio.get_running_loop().create_task(one.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
