"""Asks a service whether it is healthy; `python -m services.common.health TARGET` exits 0 if so.

TARGET is host:port of a gRPC server, or a URL that answers 200.
"""

from __future__ import annotations

import asyncio
import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import channels
from services.common.settings import TlsSettings, read

TIMEOUT_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


async def is_serving(address: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the gRPC server at host:port says that it is SERVING."""
    async with channels.open_channel(address, tls=TlsSettings()) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a GET of the URL is answered with 200."""
    try:
        with _DIRECT.open(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def main() -> None:
    target = sys.argv[1]
    read(TlsSettings)
    healthy = answers(target) if "://" in target else asyncio.run(is_serving(target))
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main()
