"""A gRPC server that streams files, as plainly as can be: what the peer path is held to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb

from services.common.server import until_signal

FRAME_BYTES = 1 << 20


async def stream(request: bytes, context: Any) -> AsyncIterator[pb.ReadResponse]:
    for path in request.decode().split("\n"):
        with Path(path).open("rb") as file:  # noqa: ASYNC230 - one caller, nothing else to do
            while data := file.read(FRAME_BYTES):
                yield pb.ReadResponse(data=data)


async def serve() -> None:
    server = grpc.aio.server()
    serializer = pb.ReadResponse.SerializeToString
    handlers: dict[str, Any] = {
        "Stream": grpc.unary_stream_rpc_method_handler(stream, response_serializer=serializer)
    }
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
