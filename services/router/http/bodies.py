"""Bodies become asks; large ones beside the event loop, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LARGE_BODY_BYTES = 256 << 10
AT_ONCE = 2


class Bodies:
    """Of one router."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(AT_ONCE)

    async def understood(self, body: bytes, understand: Callable[[bytes], T]) -> T:
        """What `understand` makes of it, or raises."""
        if len(body) <= LARGE_BODY_BYTES:
            return understand(body)
        async with self._large:
            return await asyncio.to_thread(understand, body)
