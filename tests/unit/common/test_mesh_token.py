"""Servers of the kit behind the token of a mesh."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels, mesh_token, roles, settings
from services.common.errors import InvalidArgument, PermissionDenied, Unauthenticated
from services.common.roles import Role
from services.common.server import Server
from services.common.settings import ServiceSettings
from services.common.statuses import from_rpc_error
from services.tensorstore.places import remote
from tests.certificates import Authority

TOKEN = "a-token-of-24-characters"
NAME = "shuntserve.controller.v1.ControllerService"
ROUTER = "shuntserve.router.v1.RouterService"


class _Controller(controller_pb2_grpc.ControllerServiceServicer):
    async def Register(self, request: Any, context: Any) -> Any:
        return controller_pb2.RegisterResponse()

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield controller_pb2.HeartbeatResponse()

    async def WatchRoutes(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield controller_pb2.WatchRoutesResponse()


class _Router(router_pb2_grpc.RouterServiceServicer):
    def __init__(self) -> None:
        self.saw: list[str] = []

    async def ListModels(self, request: Any, context: Any) -> Any:
        self.saw += [key for key, _ in context.invocation_metadata()]
        return router_pb2.ListModelsResponse()


@asynccontextmanager
async def _asked_with(
    shown: str, monkeypatch: pytest.MonkeyPatch, router: _Router | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of a caller with that token, to a server with the right one."""
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    server = Server(ServiceSettings(shutdown_grace_s=0), [NAME, ROUTER])
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(_Controller(), server.grpc_server)
    router_pb2_grpc.add_RouterServiceServicer_to_server(router or _Router(), server.grpc_server)
    port = await server.start()
    monkeypatch.setenv(mesh_token.VARIABLE, shown)
    try:
        async with channels.open_channel(f"127.0.0.1:{port}", Role.CONTROLLER) as channel:
            yield channel
    finally:
        await server.stop()


async def _every_kind(channel: grpc.aio.Channel) -> None:
    stub = controller_pb2_grpc.ControllerServiceStub(channel)
    await stub.Register(
        controller_pb2.RegisterRequest(), timeout=60, metadata=(("traceparent", "x"),)
    )
    watch = stub.WatchRoutes(controller_pb2.WatchRoutesRequest(), timeout=60)
    assert len([message async for message in watch]) == 1
    beats = stub.Heartbeat(iter([controller_pb2.HeartbeatRequest()]), timeout=60)
    assert len([message async for message in beats]) == 1
    written = stub.Heartbeat(timeout=60)
    await written.write(controller_pb2.HeartbeatRequest())
    assert await written.read() == controller_pb2.HeartbeatResponse()
    written.cancel()


async def test_who_shows_the_token_may_call_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _asked_with(TOKEN, monkeypatch) as channel:
        await _every_kind(channel)


@pytest.mark.parametrize("shown", ["", "another-of-24-characters", TOKEN + "x"])
async def test_nobody_else_is_heard_but_by_health_and_the_clients_door(
    monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    async with _asked_with(shown, monkeypatch) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        calls: list[Any] = [
            stub.Register(controller_pb2.RegisterRequest(node_id="n"), timeout=60),
            stub.WatchRoutes(controller_pb2.WatchRoutesRequest(), timeout=60).read(),
            stub.Heartbeat(iter([controller_pb2.HeartbeatRequest()]), timeout=60).read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            error = from_rpc_error(refused.value)
            assert isinstance(error, Unauthenticated)
            assert mesh_token.VARIABLE in error.message
            assert TOKEN not in str(refused.value)
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        models = router_pb2_grpc.RouterServiceStub(channel).ListModels
        await models(router_pb2.ListModelsRequest(), timeout=60)


async def test_a_router_never_sees_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    router = _Router()
    async with _asked_with(TOKEN, monkeypatch, router) as channel:
        models = router_pb2_grpc.RouterServiceStub(channel).ListModels
        await models(router_pb2.ListModelsRequest(), timeout=60)
    assert "authorization" not in router.saw
    assert router.saw


def test_every_rpc_but_the_clients_needs_the_token() -> None:
    methods = [f"/{service}/{rpc}" for service, rpcs in roles.CALLERS.items() for rpc in rpcs]
    free = {method for method in methods if roles.is_for_clients(method)}
    assert {method.split("/")[1] for method in free} == {ROUTER}
    assert len(methods) > 30


async def test_the_stores_own_client_shows_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    shown: list[Any] = []

    class _Calls:
        def unary_unary(self, method: str, **options: Any) -> Any:
            return lambda request, metadata, timeout: shown.append(metadata)

        unary_stream = stream_unary = stream_stream = unary_unary

    monkeypatch.setattr(grpc, "insecure_channel", lambda *_, **__: _Calls())
    channel: Any = remote.open_channel("host:1", Role.TENSORSTORE)
    channel.unary_unary("/shuntserve.tensorstore.v1.TensorStoreService/List")(b"", timeout=1)
    assert shown == [(("authorization", f"Bearer {TOKEN}"),)]


NODE = mesh_token.of_node(TOKEN, "n-1")
ENGINE_RPC = "/shuntserve.engine.v1.EngineService/Forward"
REGISTER = f"/{NAME}/Register"


def _shown(monkeypatch: pytest.MonkeyPatch, token: str, method: str) -> Any:
    """The metadata of a call by a process with that token."""
    seen: list[Any] = []

    class _Channel:
        def unary_unary(self, method: str, **options: Any) -> Any:
            return lambda request, metadata=None: seen.append(metadata)

        unary_stream = stream_unary = stream_stream = unary_unary

    monkeypatch.setenv(mesh_token.VARIABLE, token)
    channel: Any = mesh_token.present(_Channel())
    channel.unary_unary(method)(b"")
    return seen[0]


def test_a_nodes_token_is_derived_as_is_written_down() -> None:
    def secret(purpose: bytes) -> str:
        return hmac.new(TOKEN.encode(), purpose, hashlib.sha256).hexdigest()

    assert f"shunt-node.n-1.{secret(b'node:n-1')}.{secret(b'engines')}" == NODE
    assert mesh_token.of_node(NODE, "n-1") == NODE
    assert mesh_token.node_of(NODE) == "n-1"
    assert mesh_token.node_of(TOKEN) == ""


@pytest.mark.parametrize("node_id", ["a.b", "with a space", "ümläut", "%2e", "shunt-node.x", "."])
def test_any_name_of_a_node_has_a_token_that_headers_carry(
    monkeypatch: pytest.MonkeyPatch, node_id: str
) -> None:
    token = mesh_token.of_node(TOKEN, node_id)
    assert mesh_token.node_of(token) == node_id
    shown = _shown(monkeypatch, token, REGISTER)
    assert mesh_token.own() == token
    caller = mesh_token.caller_of(TOKEN, REGISTER, shown)
    assert caller == roles.Identity(roles.Role.ENGINE, node_id)


def test_a_token_of_a_node_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionDenied) as refused:
        mesh_token.of_node(NODE, "n-2")
    assert refused.value.field == "node_id"
    with pytest.raises(InvalidArgument):
        mesh_token.of_node(TOKEN, "")


@pytest.mark.parametrize("holder", [TOKEN, NODE])
@pytest.mark.parametrize("server", [TOKEN, mesh_token.of_node(TOKEN, "n-2")])
def test_everybody_shows_engines_what_they_can_check_and_no_more(
    monkeypatch: pytest.MonkeyPatch, holder: str, server: str
) -> None:
    shown = _shown(monkeypatch, holder, ENGINE_RPC)
    assert mesh_token.caller_of(server, ENGINE_RPC, shown) is None
    secret = NODE.rpartition(".")[2]
    assert shown == (("authorization", f"Bearer {secret}"),)
    for method in (REGISTER, "/shuntserve.tensorstore.v1.TensorStoreService/Read"):
        with pytest.raises(Unauthenticated):
            mesh_token.caller_of(TOKEN, method, shown)


def test_what_a_node_shows_elsewhere_opens_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for holder in (TOKEN, NODE):
        shown = _shown(monkeypatch, holder, REGISTER)
        assert NODE.rpartition(".")[2] not in str(shown)
        for server in (TOKEN, NODE):
            with pytest.raises(Unauthenticated):
                mesh_token.caller_of(server, ENGINE_RPC, shown)


@pytest.mark.parametrize("shown", ["Bearer shunt-node.n-1.", "Bearer shunt-node..", "Bearer ", "x"])
def test_what_is_no_token_is_refused(shown: str) -> None:
    for value in (shown, shown.encode() + b"\xff"):
        with pytest.raises(Unauthenticated):
            mesh_token.caller_of(TOKEN, REGISTER, [("authorization", value)])


class _Engine(ServiceSettings):
    @property
    def own_node_id(self) -> str:
        return "n-1"


@pytest.mark.parametrize("given", [TOKEN, NODE])
def test_an_engine_goes_on_with_its_nodes_token_whatever_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    path = tmp_path / "token"
    path.write_text(given)
    monkeypatch.setenv(mesh_token.VARIABLE, "")
    monkeypatch.setenv(mesh_token.FILE_VARIABLE, str(path))
    settings.read(_Engine)
    assert mesh_token.own() == NODE
    assert os.environ[mesh_token.FILE_VARIABLE] == ""


def test_an_engine_without_a_token_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mesh_token.VARIABLE, raising=False)
    settings.read(_Engine)
    assert mesh_token.own() == ""


@pytest.mark.group(38)
def test_a_token_of_another_node_or_for_another_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, NODE)
    assert f"bad setting {mesh_token.VARIABLE}: " in _refused(capsys)
    monkeypatch.setenv(mesh_token.VARIABLE, mesh_token.of_node(TOKEN, "n-2"))
    assert "bad setting NODE_ID: the token is node n-2's alone" in _refused(capsys, _Engine)


def _refused(
    capsys: pytest.CaptureFixture[str], kind: type[ServiceSettings] = ServiceSettings
) -> str:
    with pytest.raises(SystemExit) as stop:
        settings.read(kind)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "controller"])
def test_beyond_loopback_a_service_starts_with_a_token_or_certificates_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str
) -> None:
    monkeypatch.setenv("HOST", host)
    said = _refused(capsys)
    assert f"bad setting {mesh_token.VARIABLE}: beyond loopback" in said
    assert mesh_token.FILE_VARIABLE in said
    with monkeypatch.context() as certified:
        for name, path in Authority(tmp_path).issue("controller").items():
            certified.setenv(f"SHUNT_TLS_{name.upper()}", str(path))
        settings.read(ServiceSettings)
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    assert settings.read(ServiceSettings).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1", "[::1]"])
def test_on_loopback_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HOST", host)
    assert settings.read(ServiceSettings).host == host


def test_a_token_comes_from_a_file_that_the_program_can_draw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    draw = [sys.executable, "-m", "services.common.mesh_token", str(path)]
    subprocess.run(draw, check=True, timeout=60)
    monkeypatch.setenv(mesh_token.FILE_VARIABLE, str(path))
    drawn = mesh_token.own()
    assert len(drawn) >= 40
    assert path.stat().st_mode & 0o077 == 0
    subprocess.run(draw, check=True, timeout=60)
    assert mesh_token.own() == drawn
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    assert mesh_token.own() == TOKEN


@pytest.mark.parametrize(
    "token",
    ["shunt-node.n-1.12345678", NODE[:-1], "short", "has a space in the middle", "ümläute" * 5],
)
def test_a_bad_token_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, token)
    said = _refused(capsys)
    assert mesh_token.VARIABLE in said
    assert token not in said


@pytest.mark.parametrize("content", [None, "", "short"])
def test_a_bad_file_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str | None,
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(mesh_token.FILE_VARIABLE, str(path))
    assert mesh_token.FILE_VARIABLE in _refused(capsys)
