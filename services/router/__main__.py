"""Wires a router together: `python -m services.router`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass

import uvicorn
import uvloop
from shuntserve.router.v1 import router_pb2_grpc

from services.common import channels, logs, server, telemetry
from services.common.settings import read, refuse
from services.router.catalogue import ModelCatalogue
from services.router.controller import ControllerClient
from services.router.core.body_budget import BodyBudget
from services.router.heads import Heads
from services.router.http.gateway import Gateway
from services.router.http.protocol import limited
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

    def keep_no_connection(self) -> None:
        """From now on every answer asks its client to come by another connection."""
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers = [  # of answers until the server's next tick
            *self.server_state.default_headers,
            (b"connection", b"close"),
        ]

    async def ended(self, serving: asyncio.Task[None], grace_s: float) -> None:
        """Takes nothing new, and ends what is not answered after the grace."""
        self.should_exit = True
        await asyncio.wait([serving], timeout=grace_s)
        if not serving.done():
            self.force_exit = True
            for task in self.server_state.tasks:
                task.cancel()
        await serving
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # nobody else closes what the grace was too short for


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
class RunningDoors:
    """A router that serves."""

    router: Router
    http_port: int
    grpc_port: int
    work: tuple[asyncio.Task[None], ...]
    """None of these ends before the router does."""
    http: HttpServer
    grpc: server.Server

    async def leave(self) -> None:
        """Goes so that nobody is hurt who looks or comes back: not ready at once, the doors closed
        behind a pause, and what is served then has some time to end. Whatever still runs when this
        returns, or is cancelled, ends with the router."""
        settings, router = self.router.settings, self.router
        _log.info("leaving", extra={"streams": router.streams})
        router.leave()
        await self.grpc.set_ready(False)
        self.http.keep_no_connection()
        await asyncio.sleep(settings.leave_pause_s)
        self.http.should_exit = True
        router.refuse()  # gRPC's door would cancel what comes while it closes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await router.idle()
        _log.info("drained", extra={"streams": router.streams})


@contextlib.asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[RunningDoors]:
    """Serves inside the block; leaving it lets every reader go."""
    controller_channel = channels.open_channel(settings.controller_address, tls=settings.tls)
    store_channel = channels.open_channel(settings.tensorstore_address, tls=settings.tls)
    controller = ControllerClient(
        controller_channel, settings.control_timeout_s, settings.stream_timeout_s
    )
    store = TensorStore(store_channel, settings.resume_timeout_s, settings.max_model_file_bytes)
    heads = Heads(settings.stream_timeout_s, settings.control_timeout_s, settings.tls)
    router = Router(settings, controller, heads, ModelCatalogue(store.files, time.time))
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
        http_port = listening.getsockname()[1]
        yield RunningDoors(router, http_port, grpc_port, (serving, work), http, grpc_server)
    finally:
        await grpc_server.set_ready(False)
        await router.close()
        await asyncio.gather(grpc_server.stop(), http.ended(serving, settings.shutdown_grace_s))
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await controller_channel.close()
        await store_channel.close()


async def serve(settings: RouterSettings) -> None:
    """Runs until a signal comes, or until something that must not end has ended. Having left in
    good order, or told so a second time, it ends."""
    signals = server.Signals()
    async with running(settings) as router:
        _log.info("listening", extra={"http": router.http_port, "grpc": router.grpc_port})
        if await _first(signals.next(), *router.work):
            leaving = asyncio.create_task(router.leave())
            if await _first(signals.next(), leaving):
                leaving.cancel()


async def _first(signalled: Coroutine[None, None, None], *work: asyncio.Task[None]) -> bool:
    """Whether the signal came before any of the work ended. Raises what that ended with."""
    signal = asyncio.create_task(signalled)
    try:
        await asyncio.wait((signal, *work), return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            if task.done():
                task.result()
        return signal.done()
    finally:
        signal.cancel()


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
