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
from shuntserve.router.v1 import router_pb2_grpc
from starlette.types import ASGIApp

from services.common import channels, event_loop, garbage, logs, server, telemetry
from services.common.errors import InvalidArgument, ShuntError
from services.common.roles import Role
from services.common.settings import read, refuse, take_no_arguments
from services.router.background import Background
from services.router.catalogue import ModelCatalogue
from services.router.controller import ControllerClient
from services.router.core.body_budget import BodyBudget
from services.router.documents import DocumentClient
from services.router.doorkeeper import Doorkeeper
from services.router.files.place import Place, open_place
from services.router.grammar_checks import GrammarChecks
from services.router.heads import Heads
from services.router.http.admin import admin_application
from services.router.http.gateway import Gateway
from services.router.http.offline import Offline
from services.router.http.protocol import limited
from services.router.key_guard import KeyInterceptor
from services.router.model_files import TensorStore
from services.router.router import Router
from services.router.service import RouterService
from services.router.settings import RouterSettings, check_reach

NAME = "shuntserve.router.v1.RouterService"
SEND_BUFFER_BYTES = 64 << 10
"""What the kernel keeps for a client that does not read; it would grow to megabytes by itself."""
TAKEN_AT_ONCE = 16
"""Connections of a crowd that comes, in one turn of the event loop. It takes one a turn of each
socket that listens, and turns are long where much is served: who is to be refused stood there."""
_log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process has one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes connections from each of these as from many, and closes them at the end."""
        again = [one.dup() for one in sockets or [] for _ in range(TAKEN_AT_ONCE - 1)]
        await super().serve([*(sockets or []), *again])

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


def http_server(app: ASGIApp, settings: RouterSettings) -> HttpServer:
    """Serves an application; hand it a bound socket."""
    return HttpServer(
        uvicorn.Config(
            app,
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


def listen(settings: RouterSettings, host: str, port: int, name: str) -> socket.socket:
    """A socket for HTTP. Exits 2 and names the setting when the port cannot be had."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    # The server closes a connection only when its client has taken all that was written: without
    # this, one that does not read a whole answer keeps it, and its connection, for ever.
    unread_ms = int(settings.write_timeout_s * 1000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        where = channels.address_of(host, port)
        refuse(settings.name_of(name), f"{where}: {error.strerror or error}")
    listening.listen(2048)
    listening.setblocking(False)
    return listening


def open_files(settings: RouterSettings) -> Place:
    """Where files are kept. Exits 2 and names the setting when it cannot be had."""
    try:
        return open_place(settings.files)
    except ShuntError as error:
        refuse(settings.name_of("files"), error.message)


@dataclass(frozen=True, slots=True)
class RunningDoors:
    """A router that serves."""

    router: Router
    http_port: int
    grpc_port: int
    work: tuple[asyncio.Task[None], ...]
    """None of these ends before the router does."""
    batches: asyncio.Task[None] | None
    """Works on batches until the router leaves; None where there are none."""
    http: HttpServer
    grpc: server.Server
    background: Background
    admin_port: int | None
    """None: operators have no listener of their own."""

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
        self.background.leave()
        await _ended(self.batches)  # others go on with them
        router.refuse()  # gRPC's door would cancel what comes while it closes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await router.idle()
        _log.info("drained", extra={"streams": router.streams})


@contextlib.asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[RunningDoors]:
    """Serves inside the block; leaving it lets every reader go."""
    controller_channels = [
        channels.open_channel(address, Role.CONTROLLER, tls=settings.tls)
        for address in settings.controllers
    ]
    store_channel = channels.open_channel(
        settings.tensorstore_address, Role.TENSORSTORE, tls=settings.tls
    )
    controller = ControllerClient(
        controller_channels, settings.control_timeout_s, settings.stream_timeout_s
    )
    store = TensorStore(store_channel, settings.resume_timeout_s, settings.max_model_file_bytes)
    heads = Heads(settings.stream_timeout_s, settings.control_timeout_s, settings.tls)
    checks = GrammarChecks()
    catalogue = ModelCatalogue(store.files, time.time, checks)
    router = Router(settings, controller, heads, catalogue)
    bodies, doorkeeper = BodyBudget(settings.max_bodies_bytes), doorkeeper_of(settings)
    grpc_server = server.Server(settings, [NAME], [KeyInterceptor(doorkeeper)])
    router_pb2_grpc.add_RouterServiceServicer_to_server(
        RouterService(router, bodies), grpc_server.grpc_server
    )
    background = Background(router, controller)
    offline = None
    if settings.files:
        place = await asyncio.to_thread(open_files, settings)
        documents = DocumentClient(controller.controllers, settings.control_timeout_s)
        offline = Offline(router, place, documents, settings, time.time)
    gateway = Gateway(router, background, settings, bodies, doorkeeper, offline).application()
    http = http_server(gateway, settings)
    listening = listen(settings, settings.host, settings.http_port, "http_port")
    grpc_port = await grpc_server.start()
    serving = asyncio.create_task(http.serve([listening]))
    work = asyncio.create_task(_together(router.run(), background.run()))
    batches = None if offline is None else asyncio.create_task(offline.runner.run())
    await grpc_server.set_ready(True)
    try:
        http_port, tasks = listening.getsockname()[1], (serving, work)
        async with _admin(router, settings) as admin_port:
            yield RunningDoors(
                router,
                http_port,
                grpc_port,
                tasks,
                batches,
                http,
                grpc_server,
                background,
                admin_port,
            )
    finally:
        await grpc_server.set_ready(False)
        await _ended(batches)
        await router.close()
        await asyncio.to_thread(checks.close)
        await asyncio.gather(grpc_server.stop(), http.ended(serving, settings.shutdown_grace_s))
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in controller_channels))
        await store_channel.close()


@contextlib.asynccontextmanager
async def _admin(router: Router, settings: RouterSettings) -> AsyncIterator[int | None]:
    """The port of the operators' listener, where there is to be one."""
    if settings.admin_port is None:
        yield None
        return
    listening = listen(settings, settings.admin_host, settings.admin_port, "admin_port")
    http = http_server(admin_application(router), settings)
    serving = asyncio.create_task(http.serve([listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        await http.ended(serving, settings.shutdown_grace_s)


def doorkeeper_of(settings: RouterSettings) -> Doorkeeper:
    """Exits 2 and names the setting for a file of keys that cannot be used."""
    try:
        return Doorkeeper(settings.keys)
    except InvalidArgument as error:
        refuse(settings.name_of("keys"), error.message)


async def _together(*work: Coroutine[None, None, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


async def serve(settings: RouterSettings) -> None:
    """Runs until a signal comes, or until something that must not end has ended. Having left in
    good order, or told so a second time, it ends."""
    garbage.spare_what_stays()
    signals = server.Signals()
    async with running(settings) as router:
        ports = {"http": router.http_port, "grpc": router.grpc_port, "admin": router.admin_port}
        _log.info("listening", extra=ports)
        work = router.work if router.batches is None else (*router.work, router.batches)
        if await _first(signals.next(), *work):
            leaving = asyncio.create_task(router.leave())
            if await _first(signals.next(), leaving):
                leaving.cancel()


async def _first(signalled: Coroutine[None, None, object], *work: asyncio.Task[None]) -> bool:
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
    check_reach(settings)
    logs.configure("router", settings.log_level)
    telemetry.configure(
        "router",
        f"{settings.router_id}-{secrets.token_hex(4)}",
        metrics_host=settings.host,
        metrics_port=settings.metrics_port,
    )
    try:
        event_loop.run(serve(settings))
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    take_no_arguments(RouterSettings)
    main()
