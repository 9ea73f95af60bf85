from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from typing import Any

import pytest

from services.common import event_loop
from services.router import __main__ as router
from services.router.__main__ import http_server, listen
from services.router.settings import RouterSettings


def test_a_taken_http_port_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    settings = RouterSettings()
    with listen(settings, "127.0.0.1", 0, "http_port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            listen(settings, "127.0.0.1", port, "http_port")
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert f"bad setting SHUNT_ROUTER_HTTP_PORT: 127.0.0.1:{port}: Address already in use" in told


async def test_no_collection_looks_at_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did would hold every stream for a tenth of a second, again and again."""

    class Begun(Exception):
        pass

    def running(_: RouterSettings) -> None:
        raise Begun

    monkeypatch.setattr(router, "running", running)
    gc.unfreeze()
    try:
        with pytest.raises(Begun):
            await router.serve(RouterSettings())
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


CROWD = 64


async def turns_to_serve(crowd: int) -> int:
    """Turns of the loop between the first and the last request of so many connections that were
    there before the server looked."""
    loop, turn, served, settings = asyncio.get_running_loop(), 0, list[int](), RouterSettings()

    def count() -> None:
        nonlocal turn, counting
        turn += 1
        counting = loop.call_soon(count)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        served.append(turn)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    listening, http = (
        listen(settings, "127.0.0.1", 0, "http_port"),
        http_server(application, settings),
    )
    port = listening.getsockname()[1]
    with contextlib.ExitStack() as connections:
        for _ in range(crowd):
            client = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        serving, counting = asyncio.create_task(http.serve([listening])), loop.call_soon(count)
        async with asyncio.timeout(60):
            while len(served) < crowd:  # noqa: ASYNC110
                await asyncio.sleep(0)
        counting.cancel()
    await http.ended(serving, 60)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    return served[-1] - served[0]


def test_connections_of_a_crowd_do_not_come_in_one_by_a_turn() -> None:
    """Where turns are long, the last of them stood before the door for a good while."""
    turns: list[int] = []

    async def count() -> None:
        turns.append(await turns_to_serve(CROWD))

    event_loop.run(count())
    assert turns[0] < CROWD // 4
