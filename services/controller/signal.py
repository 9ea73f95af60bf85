"""Wakes tasks that wait for a change."""

from __future__ import annotations

import asyncio


class Signal:
    """Everyone who waits goes on each time it fires.

    Check what you wait for, then wait, with no await between the two: nothing is missed.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Returns when it fires, or after `timeout_s`."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
