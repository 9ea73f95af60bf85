from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from services.router.http.protocol import abort_of, limited
from services.router.settings import RouterSettings


async def test_a_connection_is_cut_once_and_cutting_what_is_lost_does_nothing() -> None:
    aborts: list[Any] = []
    lost = asyncio.Event()

    async def application(scope: Any, receive: Any, _send: Any) -> None:
        aborts.append(abort_of(scope))
        while (await receive())["type"] != "http.disconnect":
            pass
        lost.set()

    protocol = limited(RouterSettings())
    config = uvicorn.Config(application, http=protocol, log_config=None, lifespan="off")
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config, ServerState(), {}), "127.0.0.1", 0
    )
    async with server, asyncio.timeout(60):
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not aborts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        aborts[0]()
        await lost.wait()
        aborts[0]()
        writer.close()
