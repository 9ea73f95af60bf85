"""Events of gRPC come in as they are there, not one by a turn of the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from services.common import event_loop

STREAMS = 500
"""More than there is room for bytes that tell of events."""
MESSAGES = 5
TURN_S = 0.01
"""Of a busy loop."""


async def turns_for(streams: int, port: int) -> int:
    """Turns that the loop takes until all messages of so many streams are read."""
    turns, read = 0, 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        tell: Any = channel.unary_stream("/test/Tell")

        async def follow() -> None:
            nonlocal read
            async for _ in tell(b"", timeout=120):
                read += 1

        following = asyncio.gather(*(follow() for _ in range(streams)))
        while not following.done():
            time.sleep(TURN_S)  # noqa: ASYNC251
            await asyncio.sleep(0)
            turns += 1
        await following
    assert read == streams * MESSAGES
    return turns


def test_the_events_of_a_crowd_do_not_come_in_one_by_a_turn() -> None:
    def tell(request: bytes, context: object) -> Iterator[bytes]:
        for _ in range(MESSAGES):
            yield b"message"

    method = grpc.unary_stream_rpc_method_handler(tell)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", {"Tell": method}),)
    )
    port, turns = server.add_insecure_port("127.0.0.1:0"), list[int]()
    server.start()

    async def count() -> None:
        turns.append(await turns_for(STREAMS, port))

    try:
        event_loop.run(count())
    finally:
        server.stop(None).wait(60)
    assert turns[0] < STREAMS * MESSAGES // 2
