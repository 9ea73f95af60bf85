"""Wires a router together: `python -m services.router`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import uvicorn
import uvloop
from shuntserve.router.v1 import router_pb2_grpc

from services.common import channels, logs, server, telemetry
from services.common.settings import read, refuse
from services.router.body_budget import BodyBudget
from services.router.catalogue import Catalogue
from services.router.controller import Controller
from services.router.gateway import Gateway
from services.router.heads import Heads
from services.router.http_protocol import limited
from services.router.model_files import TensorStore
from services.router.router import Router
from services.router.service import RouterService
from services.router.settings import RouterSettings

NAME = "shuntserve.router.v1.RouterService"
SEND_BUFFER_BYTES = 64 << 10
"""What the kernel keeps for a client that does not read; it would grow to megabytes by itself."""
_log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process has one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(router: Router, settings: RouterSettings, bodies: BodyBudget) -> HttpServer:
    """The gateway's server; hand it a bound socket."""
    return HttpServer(
        uvicorn.Config(
            Gateway(router, settings, bodies).application(),
            loop="none",
            http=limited(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=int(settings.shutdown_grace_s) or 1,
        )
    )


def listen(settings: RouterSettings) -> socket.socket:
    """The gateway's socket. Exits 2 and names the setting when the port cannot be had."""
    listening = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    # The server closes a connection only when its client has taken all that was written: without
    # this, one that does not read a whole answer keeps it, and its connection, for ever.
    unread_ms = int(settings.write_timeout_s * 1000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    try:
        listening.bind((settings.host, settings.http_port))
    except OSError as error:
        listening.close()
        where = channels.address_of(settings.host, settings.http_port)
        refuse(settings.name_of("http_port"), f"{where}: {error.strerror or error}")
    listening.listen(2048)
    listening.setblocking(False)
    return listening


@dataclass(frozen=True, slots=True)
class Running:
    """A router that serves."""

    router: Router
    http_port: int
    grpc_port: int
    work: tuple[asyncio.Task[None], ...]
    """None of these ends before the router does."""


@contextlib.asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[Running]:
    """Serves inside the block; leaving it lets every reader go."""
    controller_channel = channels.open_channel(settings.controller_address, tls=settings.tls)
    store_channel = channels.open_channel(settings.tensorstore_address, tls=settings.tls)
    controller = Controller(
        controller_channel, settings.control_timeout_s, settings.stream_timeout_s
    )
    store = TensorStore(store_channel, settings.resume_timeout_s, settings.max_model_file_bytes)
    heads = Heads(settings.stream_timeout_s, settings.control_timeout_s, settings.tls)
    router = Router(settings, controller, heads, Catalogue(store.files, time.time))
    bodies = BodyBudget(settings.max_bodies_bytes)
    grpc_server = server.Server(settings, [NAME])
    router_pb2_grpc.add_RouterServiceServicer_to_server(
        RouterService(router, bodies), grpc_server.grpc_server
    )
    http, listening = http_server(router, settings, bodies), listen(settings)
    grpc_port = await grpc_server.start()
    serving = asyncio.create_task(http.serve([listening]))
    work = asyncio.create_task(router.run())
    await grpc_server.set_ready(True)
    try:
        yield Running(router, listening.getsockname()[1], grpc_port, (serving, work))
    finally:
        await grpc_server.set_ready(False)
        await router.close()
        http.should_exit = True
        await asyncio.gather(grpc_server.stop(), serving)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await controller_channel.close()
        await store_channel.close()


async def serve(settings: RouterSettings) -> None:
    """Runs until a signal comes, or until something that must not end has ended."""
    async with running(settings) as router:
        _log.info("listening", extra={"http": router.http_port, "grpc": router.grpc_port})
        signalled = asyncio.create_task(server.until_signal())
        await asyncio.wait((*router.work, signalled), return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        for task in router.work:
            if task.done():
                task.result()


def main() -> None:
    """Reads settings, logs and traces, and serves."""
    settings = read(RouterSettings)
    logs.configure("router", settings.log_level)
    telemetry.configure(
        "router",
        f"{settings.router_id}-{secrets.token_hex(4)}",
        metrics_host=settings.host,
        metrics_port=settings.metrics_port,
    )
    try:
        uvloop.run(serve(settings))
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
