from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from services.common import health
from services.common.roles import Role


@pytest.fixture
async def servicer() -> AsyncIterator[tuple[health_aio.HealthServicer, str]]:
    server = grpc.aio.server()
    servicer = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_only_a_server_that_serves_is_healthy(
    servicer: tuple[health_aio.HealthServicer, str],
) -> None:
    service, address = servicer
    await service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await health.is_serving(address, Role.ROUTER)
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    assert await health.is_serving(address, Role.ROUTER)


async def test_nobody_is_not_healthy() -> None:
    assert not await health.is_serving("127.0.0.1:1", Role.ROUTER, timeout_s=1.0)
    assert not health.answers("http://127.0.0.1:1/readyz", timeout_s=1.0)


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_healthy_when_it_answers_200(url: str) -> None:
    assert health.answers(f"{url}/readyz")
    assert not health.answers(f"{url}/healthz")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for everything, at which nobody answers."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxied")
async def test_no_proxy_stands_between_services(
    servicer: tuple[health_aio.HealthServicer, str],
) -> None:
    service, address = servicer
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    assert await health.is_serving(address, Role.ROUTER)


@pytest.mark.usefixtures("proxied")
def test_no_proxy_is_asked_for_a_url(url: str) -> None:
    command = (sys.executable, "-m", "services.common.health", url + "/readyz")
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(("path", "status"), [("/readyz", 0), ("/healthz", 1)])
def test_the_command_exits_with_the_health(url: str, path: str, status: int) -> None:
    command = (sys.executable, "-m", "services.common.health", url + path)
    assert subprocess.run(command, timeout=60, check=False).returncode == status


async def test_the_command_asks_a_server_of_the_role_that_is_said(
    servicer: tuple[health_aio.HealthServicer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, address = servicer
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    command = (sys.executable, "-m", "services.common.health", address)
    for said, status in (("router",), 0), ((), 2), (("nobody",), 2):
        process = await asyncio.create_subprocess_exec(*command, *said)
        assert await process.wait() == status
