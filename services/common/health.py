"""Asks a service whether it is healthy; `python -m services.common.health TARGET` exits 0 if so.

TARGET is a URL that answers 200, or host:port of a gRPC server; behind it stands the role of that
server: placement, say.
"""

from __future__ import annotations

import argparse
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
from services.common.roles import Role
from services.common.settings import TlsSettings, read

TIMEOUT_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


async def is_serving(address: str, role: Role, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the gRPC server at host:port is of that role, and says that it is SERVING."""
    async with channels.open_channel(address, role, tls=TlsSettings()) as channel:
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
    parser = argparse.ArgumentParser(prog="python -m services.common.health")
    parser.add_argument("target", help="URL that answers 200, or host:port of a gRPC server")
    parser.add_argument("role", nargs="?", choices=list(Role), help="of the gRPC server")
    asked = parser.parse_args()
    by_http = "://" in asked.target
    if by_http == (asked.role is not None):
        parser.error("a gRPC server has a role, a URL has none")
    read(TlsSettings)
    if by_http:
        healthy = answers(asked.target)
    else:
        healthy = asyncio.run(is_serving(asked.target, Role(asked.role)))
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main()
