from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from services.router.http.answering import watched


async def test_a_cancellation_while_the_watch_ends_is_not_lost() -> None:
    released, watching, ending = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def until_disconnected() -> None:
        watching.set()
        try:
            await released.wait()
        finally:
            ending.set()
            await released.wait()

    exchange: Any = SimpleNamespace(until_disconnected=until_disconnected)

    async def handle() -> None:
        async with watched(exchange, asyncio.Event()):
            await watching.wait()

    handling = asyncio.create_task(handle())
    await ending.wait()
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    released.set()
