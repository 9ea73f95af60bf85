"""Asks a service whether it is healthy; `python -m services.common.health TARGET` exits 0 if so.

TARGET is host:port of a gRPC server, or a URL that answers 200.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass

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
    return complaint(url, timeout_s) is None


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a service is not ready, in its own words."""

    reason: str
    permanent: bool
    """It will not become ready by itself."""


def complaint(url: str, timeout_s: float = TIMEOUT_S) -> Complaint | None:
    """What stands in the way of a 200 for a GET of the URL; None when nothing does."""
    try:
        with _DIRECT.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return _complaint_from(error.read())
    except (OSError, http.client.HTTPException):
        return Complaint("it does not answer", False)


def _complaint_from(body: bytes) -> Complaint:
    try:
        said = json.loads(body)
        return Complaint(str(said["reason"]), bool(said["permanent"]))
    except (ValueError, KeyError, TypeError):
        return Complaint("it is not ready", False)


def main() -> None:
    target = sys.argv[1]
    read(TlsSettings)
    healthy = answers(target) if "://" in target else asyncio.run(is_serving(target))
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main()
