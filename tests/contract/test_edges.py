"""Whoever calls a service of the mesh speaks to who shows that service's role, and to no other.

Each edge is asked by the caller's own wiring; the server holds a certificate of the mesh's
authority, for the very address that is dialled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import empty_pb2
from shuntserve.launcher.v1 import launcher_pb2
from shuntserve.placement.v1 import placement_pb2
from shuntserve.router.v1 import router_pb2

import services.controller.__main__ as controller_main
import services.engine.__main__ as engine_main
import services.router.__main__ as router_main
from services.cli import conversation, demo, mesh_status
from services.cli.controller_calls import controller_of
from services.cli.ec2 import gateway
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState, ServiceRecord
from services.cli.recorder import Recorder
from services.common import channels, health
from services.common.errors import ShuntError
from services.common.exchange import Route
from services.common.generation import CancelReason, ModelRef
from services.common.nodes import NodeFacts, NodeShape
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.goals import Goal
from services.controller.core.model_facts import ModelFacts
from services.controller.engines import Engines, EngineTimeouts
from services.controller.model_store import facts_now
from services.controller.planning import Planning
from services.controller.settings import ControllerSettings
from services.engine.assembly import assemble
from services.engine.settings import EngineSettings
from services.engine.starting import StartTrace
from services.placement.command import client as placement_client
from services.router import cli as router_cli
from services.router.heads import Heads
from services.router.settings import RouterSettings
from services.tensorstore import __main__ as store_main
from services.tensorstore.places.uris import open_reader
from services.tensorstore.settings import TensorStoreSettings
from tests.certificates import Authority
from tests.contract.engine.tiny import TinyLoader

NOBODY = "127.0.0.1:1"
WAIT_S = 60.0
FACTS = NodeFacts("node-1", "inc", NOBODY, 1, NodeShape(1 << 30, 1.0))
GOAL = Goal(ModelFacts("m", "d" * 64, 2, 64, 64, "{}"))
Edge = Callable[[str, Path], Awaitable[object]]
"""Asks whoever is at the address, by the wiring of a service; raises when nobody answers."""


class _Reached(grpc.GenericRpcHandler):
    """Takes every call, notes it and answers that there is no such thing."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def service(self, details: Any) -> Any:
        async def answer(requests: Any, context: Any) -> Any:
            self.methods.add(details.method)
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing is here")

        return grpc.stream_stream_rpc_method_handler(answer)


@asynccontextmanager
async def _served(authority: Authority, shown: str) -> AsyncIterator[tuple[str, _Reached]]:
    """Address of a server with a certificate of that role, and what reached it."""
    tls = TlsSettings(**authority.issue(shown, names_role=True))
    server, reached = grpc.aio.server(), _Reached()
    server.add_generic_rpc_handlers((reached,))
    bound = channels.bind(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"127.0.0.1:{bound.port}", reached
    finally:
        await server.stop(None)
        del bound


async def _ask(channel: grpc.aio.Channel) -> None:
    await channel.unary_unary("/any/Any")(b"", timeout=WAIT_S)


def _mesh(address: str, path: Path) -> MeshDirectory:
    """Of a mesh whose controller is at the address."""
    directory = MeshDirectory(path)
    record = ServiceRecord("controller", 1, address, None)
    directory.write(MeshState("mesh", 1, "m", "ready", "ready", (record,)))
    return directory


async def _engine_to_controller(address: str, path: Path) -> None:
    chosen = EngineSettings(node_id="node-1", controller=address, tls=TlsSettings())
    link = engine_main._link(chosen, cast(Any, None), FACTS, StartTrace())
    await link._stubs[0].Register(cast(Any, empty_pb2.Empty()), timeout=WAIT_S)


async def _engine_to_engine(address: str, path: Path) -> None:
    engine = assemble(EngineSettings(node_id="node-1", tls=TlsSettings()), TinyLoader())
    for how in ({}, {"apart": True}):
        async with cast(Any, engine._connect)(address, **how) as channel:
            await _ask(channel)


async def _router_to_head(address: str, path: Path) -> None:
    heads = Heads(WAIT_S, WAIT_S, TlsSettings())
    route = Route("p", "f", "inc", address, 1.0, ModelRef("m", "d"), 64)
    try:
        await heads.cancel(route, "g", None, CancelReason.CLIENT)
    finally:
        await heads.close()


def _router_to(role: str) -> Edge:
    async def edge(address: str, path: Path) -> None:
        """Its channels are asked as they were opened."""
        opened = dict[str, grpc.aio.Channel]()
        usual = channels.open_channel

        def noting(to: str, *how: Any, **more: Any) -> grpc.aio.Channel:
            opened[to] = usual(to, *how, **more)
            return opened[to]

        addresses = {"controller_address": NOBODY, "tensorstore_address": "127.0.0.1:2"}
        settings = RouterSettings(
            **addresses | {f"{role}_address": address},
            files=str(path / "files"),
            http_port=0,
            grpc_port=0,
            tls=TlsSettings(),
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(channels, "open_channel", noting)
            async with router_main.running(settings):
                await _ask(opened[address])

    return edge


async def _controller_to_store(address: str, path: Path) -> None:
    await facts_now(address, "m", timeout_s=WAIT_S, tls=TlsSettings())


async def _controller_to_engine(address: str, path: Path) -> None:
    engines = Engines(EngineTimeouts(cancel_s=WAIT_S), max_message_bytes=1 << 20, tls=TlsSettings())
    try:
        await engines.cancel(address, "g", None, CancelReason.CLIENT)
    finally:
        await engines.close()


async def _controller_to_launcher(address: str, path: Path) -> None:
    chosen = ControllerSettings(data_dir=path, launcher_address=address, tls=TlsSettings())
    async with controller_main.in_containers(chosen, cast(Any, None)) as provider:
        await provider._launcher.Launch(launcher_pb2.LaunchRequest(), timeout=WAIT_S)


async def _controller_to_placement(address: str, path: Path) -> None:
    planning = Planning(address, planner="proportional", timeout_s=WAIT_S, tls=TlsSettings())
    try:
        await planning.plan(AskPlan(1, (GOAL,), (), 1))
    finally:
        await planning.close()


async def _store_to_peer(address: str, path: Path) -> None:
    chosen = TensorStoreSettings(
        store=str(path), cache_directory=path / "cache", peers=(address,), tls=TlsSettings()
    )
    node = store_main.build_node(chosen)
    reader = cast(Any, node.residence)._sources[0]
    with closing(reader):
        await asyncio.to_thread(reader.names)


def _from_store(uri: str) -> Edge:
    async def edge(address: str, path: Path) -> None:
        with closing(cast(Any, open_reader(uri.format(address)))) as reader:
            await asyncio.to_thread(reader.names)

    return edge


async def _person_to_router(address: str, path: Path) -> None:
    await router_cli._models(address)


async def _chat_to_router(address: str, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conversation, "RECONNECT_S", 0.0)
        async for _ in conversation.stream([address], router_pb2.GenerateRequest()):
            pass


async def _person_to_placement(address: str, path: Path) -> None:
    await placement_client._plan(address, placement_pb2.PlanRequest(), WAIT_S)


async def _person_to_controller(address: str, path: Path) -> None:
    async with controller_of(_mesh(address, path)) as stub:
        await stub.GetStatus(cast(Any, empty_pb2.Empty()), timeout=WAIT_S)


async def _status_of(address: str, path: Path) -> None:
    if await mesh_status.controller_status(address) is None:
        raise MeshError("away")


async def _events_from_afar(address: str, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:

        async def status(*_: Any) -> Any:
            return gateway.controller_pb2.GetStatusResponse()

        patched.setattr(gateway, "controller_status", status)
        patched.setattr(gateway, "TIMEOUT_S", WAIT_S)
        await gateway._told(address, TlsSettings(), 0)


async def _demo_to_controller(address: str, path: Path) -> None:
    shown = demo._Demo(_mesh(address, path), 1, cast(Any, None))
    await shown._events()


async def _recorder_to_engine(address: str, path: Path) -> None:
    recorder = Recorder(_mesh(NOBODY, path), [], 1.0, 1)
    await recorder._described(address)


def _health_of(role: Role) -> Edge:
    async def edge(address: str, path: Path) -> None:
        await health.is_serving(address, role, WAIT_S)

    return edge


HEALTH = {role: _health_of(role) for role in Role}
EDGES: dict[str, tuple[Role, Edge]] = {
    "an engine and its controller": (Role.CONTROLLER, _engine_to_controller),
    "an engine and the next": (Role.ENGINE, _engine_to_engine),
    "an engine and the mesh's store": (Role.TENSORSTORE, _from_store("grpc://{}")),
    "an engine and its node's store": (Role.ENGINE, _from_store("grpc://{}?role=engine")),
    "a store and its peer": (Role.TENSORSTORE, _store_to_peer),
    "a router and a head": (Role.ENGINE, _router_to_head),
    "a router and the controller": (Role.CONTROLLER, _router_to("controller")),
    "a router and the store": (Role.TENSORSTORE, _router_to("tensorstore")),
    "a controller and the store": (Role.TENSORSTORE, _controller_to_store),
    "a controller and an engine": (Role.ENGINE, _controller_to_engine),
    "a controller and the launcher": (Role.LAUNCHER, _controller_to_launcher),
    "a controller and placement": (Role.PLACEMENT, _controller_to_placement),
    "a person and a router": (Role.ROUTER, _person_to_router),
    "a chat and a router": (Role.ROUTER, _chat_to_router),
    "a person and placement": (Role.PLACEMENT, _person_to_placement),
    "a person and the controller": (Role.CONTROLLER, _person_to_controller),
    "a status and the controller": (Role.CONTROLLER, _status_of),
    "events from afar": (Role.CONTROLLER, _events_from_afar),
    "a demonstration and the controller": (Role.CONTROLLER, _demo_to_controller),
    "a recorder and an engine": (Role.ENGINE, _recorder_to_engine),
    **{f"health of a {role}": (role, edge) for role, edge in HEALTH.items()},
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.group(34)
async def test_a_server_of_another_role_is_not_spoken_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, (role, edge) = Authority(tmp_path), EDGES[name]
    for file, path in authority.issue("operator", names_role=True).items():
        monkeypatch.setenv(TlsSettings.name_of(file), str(path))
    tempting = Role.ROUTER if role is Role.ENGINE else "engine/node-2"
    for shown in Role if edge in HEALTH.values() else (role, Role.CLIENT, tempting):
        async with _served(authority, shown) as (address, reached):
            with suppress(ShuntError, grpc.aio.AioRpcError, MeshError):
                await edge(address, tmp_path)
            assert bool(reached.methods) is (Role(shown.partition("/")[0]) is role), shown
