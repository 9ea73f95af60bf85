from __future__ import annotations

import asyncio
import select
import socket
import sys
import threading
import time

import pytest

from bench import arrival


async def seen_behind(reply: bytes) -> tuple[float, float]:
    """A reply that lies in the kernel for a while before its reader looks: what it took by the
    kernel's notes, and at least as long as it took until it could be read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                connection.recv(1024)
                connection.sendall(reply)

        serving = threading.Thread(target=serve)
        serving.start()
        with await arrival.connected(*server.getsockname()) as connection:
            began_s, readable_s = time.time(), 0.0

            def busy() -> None:
                nonlocal readable_s
                select.select([connection], [], [], 60)
                readable_s = time.time()
                time.sleep(0.05)

            asyncio.get_running_loop().call_soon(busy)
            took_s = await arrival.replied_in_s(connection, b"request")
            serving.join()
            assert connection.recv(len(reply)) == reply, "it is still to be read"
        return took_s, readable_s - began_s


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notes are Linux's")
async def test_what_a_reply_took_does_not_count_for_how_long_its_reader_had_no_core() -> None:
    """The kernel begins to note some moments after it was first asked to."""
    for _ in range(100):
        took_s, readable_s = await seen_behind(b"reply")
        assert took_s > 0
        if took_s <= readable_s:
            return
    pytest.fail("it always counted")


async def test_who_is_sent_away_without_a_reply_is_told_so() -> None:
    with pytest.raises(ConnectionError):
        await seen_behind(b"")
