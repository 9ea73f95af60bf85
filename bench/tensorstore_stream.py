"""A gRPC server that streams as many bytes as it is asked for: what the peer path is held to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from services.common.server import until_signal

FRAME = bytes(1 << 20)


async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(-(-int(request) // len(FRAME))):
        yield FRAME


async def serve() -> None:
    server = grpc.aio.server()
    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Plain", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"plain: grpc on 127.0.0.1:{port}", flush=True)
    await until_signal()
    await asyncio.wait_for(server.stop(1), 5)


if __name__ == "__main__":
    uvloop.run(serve())
