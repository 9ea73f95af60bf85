"""Turns for a crowd that all want the event loop at once, so that others are served meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque


class Slices:
    """Lets a few go on between two looks of the event loop at what has come in."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._renewing = False

    async def turn(self) -> None:
        """Returns when it is the caller's turn, at once where few have come; first come, first
        served."""
        loop = asyncio.get_running_loop()
        if not self._renewing:
            self._renewing = True
            loop.call_soon(self._renew)
        if self._left:
            self._left -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _renew(self) -> None:
        self._left = self._at_once
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._left -= 1
                turn.set_result(None)
        self._renewing = self._left < self._at_once
        if self._renewing:
            asyncio.get_running_loop().call_soon(self._renew)
