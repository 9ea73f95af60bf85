from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.types import Message

from services.common.tenants import NOBODY
from services.router.core.body_budget import BodyBudget
from services.router.http.access import Visit
from services.router.http.answering import while_connected
from services.router.http.errors import HttpError
from services.router.http.exchange import Exchange
from services.router.settings import RouterSettings


class Client:
    """Of an exchange: what it sends, until it goes."""

    def __init__(self) -> None:
        self.goes = asyncio.Event()
        self.watched = 0
        scope = {"shunt.visit": Visit("req_1", {}), "shunt.tenant": NOBODY}
        settings = RouterSettings()
        self.exchange = Exchange(scope, self._receive, self._send, settings, BodyBudget(1 << 20))

    async def _receive(self) -> Message:
        self.watched += 1
        await self.goes.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        raise AssertionError


async def test_a_client_that_goes_is_told_of_once_and_to_who_asks_at_the_time() -> None:
    client, told = Client(), asyncio.Queue[str]()
    with client.exchange.leaving(lambda: told.put_nowait("outer")):
        with client.exchange.leaving(lambda: told.put_nowait("inner")):
            pass
        client.goes.set()
        assert await told.get() == "outer"
    with client.exchange.leaving(lambda: told.put_nowait("late")):
        assert told.get_nowait() == "late"
    client.exchange.close()
    assert told.empty()
    assert client.watched == 1


async def test_nobody_is_watched_for_behind_the_end() -> None:
    client = Client()
    async with while_connected(client.exchange):
        pass
    client.exchange.close()
    client.goes.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not client.exchange.disconnected


async def test_what_is_done_for_a_client_ends_when_it_goes() -> None:
    client, begun = Client(), asyncio.Event()

    async def begin() -> None:
        async with while_connected(client.exchange):
            begun.set()
            await asyncio.Event().wait()

    beginning = asyncio.create_task(begin())
    await begun.wait()
    client.goes.set()
    with pytest.raises(HttpError, match="the client has gone"):
        await beginning
    with pytest.raises(HttpError, match="the client has gone"):
        async with while_connected(client.exchange):
            await asyncio.Event().wait()
    client.exchange.close()


async def test_a_cancellation_of_the_handler_is_its_own() -> None:
    client, begun = Client(), asyncio.Event()

    async def begin() -> None:
        async with while_connected(client.exchange):
            begun.set()
            await asyncio.Event().wait()

    beginning = asyncio.create_task(begin())
    await begun.wait()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    client.exchange.close()


async def test_what_fails_when_a_client_goes_is_not_lost() -> None:
    client, failed = Client(), asyncio.Event()

    def fail() -> None:
        failed.set()
        raise ZeroDivisionError

    with client.exchange.leaving(fail):
        client.goes.set()
        await failed.wait()
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        client.exchange.close()


async def test_what_was_served_is_no_garbage() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_message: Any) -> None:
        raise AssertionError

    scope = {"shunt.visit": Visit("req_1", {}), "shunt.tenant": NOBODY}
    exchange = Exchange(scope, receive, send, RouterSettings(), BodyBudget(1 << 20))
    gc.collect()
    gc.disable()
    try:
        with exchange.leaving():
            await asyncio.sleep(0)  # somebody watches for its client from now on
        exchange.close()
        known = weakref.ref(exchange)
        del exchange
        for _ in range(3):
            await asyncio.sleep(0)
        assert known() is None
    finally:
        gc.enable()
