"""Servers of the kit with real certificates."""

from __future__ import annotations

import asyncio
import datetime
import importlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common import certificate_files, channels, guards
from services.common.errors import PermissionDenied, Unauthenticated
from services.common.renewal import RenewedChannel
from services.common.roles import CALLERS, Role
from services.common.server import Server
from services.common.settings import ServiceSettings, TlsSettings
from services.common.statuses import from_rpc_error
from tests.certificates import Authority

ROOT = Path(__file__).parents[3]
NAME = "shuntserve.controller.v1.ControllerService"
KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class _Controller(controller_pb2_grpc.ControllerServiceServicer):
    async def Register(self, request: Any, context: Any) -> Any:
        return controller_pb2.RegisterResponse()

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield controller_pb2.HeartbeatResponse()

    async def WatchRoutes(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield controller_pb2.WatchRoutesResponse()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def _asked_by(
    authority: Authority, identity: str
) -> AsyncIterator[controller_pb2_grpc.ControllerServiceStub]:
    """A controller, and a stub whose channel has that identity."""
    tls = TlsSettings(**authority.issue("controller"))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(_Controller(), server.grpc_server)
    port = await server.start()
    caller = TlsSettings(**authority.issue(identity))
    try:
        async with channels.open_channel(
            f"127.0.0.1:{port}", Role.CONTROLLER, tls=caller
        ) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            yield controller_pb2_grpc.ControllerServiceStub(channel)
    finally:
        await server.stop()


async def _routes(stub: controller_pb2_grpc.ControllerServiceStub) -> int:
    watch = stub.WatchRoutes(controller_pb2.WatchRoutesRequest(), timeout=60)
    return len([message async for message in watch])


async def _beats(stub: controller_pb2_grpc.ControllerServiceStub, node_id: str) -> int:
    beat = controller_pb2.HeartbeatRequest(node_id=node_id)
    return len([message async for message in stub.Heartbeat(iter([beat, beat]), timeout=60)])


async def _register(stub: controller_pb2_grpc.ControllerServiceStub, node_id: str) -> None:
    await stub.Register(controller_pb2.RegisterRequest(node_id=node_id), timeout=60)


async def test_a_role_may_call_what_the_table_allows(authority: Authority) -> None:
    async with _asked_by(authority, "router") as stub:
        assert await _routes(stub) == 1
    async with _asked_by(authority, "engine") as stub:
        await _register(stub, "node-1")
        assert await _beats(stub, "node-2") == 2


@pytest.mark.parametrize("identity", ["engine", "client", "", "nobody"])
@pytest.mark.group(34)
async def test_a_wrong_role_is_denied(authority: Authority, identity: str) -> None:
    async with _asked_by(authority, identity) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _routes(stub)
        assert isinstance(from_rpc_error(refused.value), PermissionDenied)


@pytest.mark.group(38)
async def test_a_nodes_certificate_registers_that_node_only(authority: Authority) -> None:
    async with _asked_by(authority, "engine/node-1") as stub:
        await _register(stub, "node-1")
        assert await _beats(stub, "node-1") == 2
        for stolen in (_register(stub, "node-2"), _beats(stub, "node-2")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stolen
            assert isinstance(from_rpc_error(refused.value), PermissionDenied)


@pytest.mark.parametrize("stranger", ["no certificate", "another authority", "an ended one"])
@pytest.mark.group(34)
async def test_a_stranger_is_not_heard(stranger: str, authority: Authority, tmp_path: Path) -> None:
    tls = TlsSettings(**authority.issue("controller"))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    port = await server.start()
    shown: TlsSettings | None = None
    if stranger == "another authority":
        (tmp_path / "elsewhere").mkdir()
        foreign = Authority(tmp_path / "elsewhere").issue("router")
        shown = TlsSettings(**{**foreign, "authority": authority.path})
    elif stranger == "an ended one":
        shown = TlsSettings(**authority.issue("router", ended=True))
    assert await _health(port, shown) is grpc.StatusCode.UNAVAILABLE
    assert await _health(port, TlsSettings(**authority.issue("operator"))) is grpc.StatusCode.OK
    await server.stop()


async def test_a_server_whose_certificate_ended_is_not_spoken_to(authority: Authority) -> None:
    ended = TlsSettings(**authority.issue("controller", ended=True))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=ended), [NAME])
    port = await server.start()
    asking = TlsSettings(**authority.issue("router"))
    assert await _health(port, asking) is grpc.StatusCode.UNAVAILABLE
    await server.stop()


@pytest.mark.parametrize("shown", ["engine", "engine/node-1", "placement"])
async def test_who_calls_the_controller_speaks_to_no_other_role(
    authority: Authority, shown: str
) -> None:
    """Its certificate is of the authority, and for that address."""
    tls = TlsSettings(**authority.issue(shown, names_role=True))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    port = await server.start()
    asking = TlsSettings(**authority.issue("router", names_role=True))
    assert await _health(port, asking) is grpc.StatusCode.UNAVAILABLE
    from_before = TlsSettings(**authority.issue("operator"))
    assert await _health(port, from_before) is grpc.StatusCode.OK, "whoever's own names no role"
    await server.stop()


@pytest.mark.parametrize("caller_names_role", [True, False])
async def test_who_calls_the_controller_speaks_to_it(
    authority: Authority, caller_names_role: bool
) -> None:
    """Certificates of earlier versions name no role to who calls: who has one asks for none."""
    tls = TlsSettings(**authority.issue("controller", names_role=caller_names_role))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    port = await server.start()
    asking = TlsSettings(**authority.issue("router", names_role=caller_names_role))
    assert await _health(port, asking) is grpc.StatusCode.OK
    await server.stop()


async def _health(port: int, tls: TlsSettings | None) -> grpc.StatusCode:
    """Of the controller."""
    address = f"127.0.0.1:{port}"
    async with channels.open_channel(address, Role.CONTROLLER, tls=tls) as channel:
        try:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
        except grpc.aio.AioRpcError as refused:
            return refused.code()
    return grpc.StatusCode.OK


async def test_a_certificate_that_ends_while_its_connection_stands_calls_no_more(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _asked_by(authority, "router") as stub:
        assert await _routes(stub) == 1
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        monkeypatch.setattr(guards, "end_of", lambda pem: long_ago)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _routes(stub)
        assert isinstance(from_rpc_error(refused.value), Unauthenticated)


async def test_metrics_tell_when_the_newest_certificate_ends(authority: Authority) -> None:
    tls = TlsSettings(**authority.issue("controller"))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    await server.start()
    name, labels = "shunt_certificate_end_timestamp_seconds", {"file": str(tls.certificate)}
    told = REGISTRY.get_sample_value(name, labels)
    assert tls.certificate is not None
    assert told == guards.end_of(tls.certificate.read_bytes()).timestamp()
    await server.stop()


def _shown_by(port: int, asking: dict[str, Path]) -> str:
    """The certificate that a server shows to a new connection."""
    context = ssl.create_default_context(cafile=asking["authority"])
    context.load_cert_chain(asking["certificate"], asking["key"])
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")


async def test_both_ends_take_up_new_certificates_while_a_stream_stands(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_files, "LOOK_INTERVAL_S", 0.0)
    callers: list[bytes] = []

    class _Seeing(_Controller):
        async def Register(self, request: Any, context: Any) -> Any:
            callers.extend(context.auth_context()["x509_pem_cert"])
            return controller_pb2.RegisterResponse()

    served, asking = authority.issue("controller"), authority.issue("engine")
    settings = ServiceSettings(shutdown_grace_s=0, tls=TlsSettings(**served))
    server = Server(settings, [NAME])
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(_Seeing(), server.grpc_server)
    port = await server.start()
    tls = TlsSettings(**asking)
    async with channels.open_channel(f"127.0.0.1:{port}", Role.CONTROLLER, tls=tls) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        beats = stub.Heartbeat()
        for times in range(1, 4):
            await beats.write(controller_pb2.HeartbeatRequest(node_id="node-1"))
            assert isinstance(await beats.read(), controller_pb2.HeartbeatResponse)
            await _register(stub, "node-1")
            assert callers[-1] == asking["certificate"].read_bytes()
            assert len(set(callers)) == times, "a new connection, and no more than one"
            shown = await asyncio.to_thread(_shown_by, port, asking)
            assert shown.encode() == served["certificate"].read_bytes()
            authority.issue("controller"), authority.issue("engine")
        retired = cast(RenewedChannel[Any], channel)._retired
        assert len(retired) <= 2, "one that is closing, and the one of the open stream"
        await beats.done_writing()
        assert await beats.read() is grpc.aio.EOF
        await asyncio.wait(retired, timeout=60)
        assert not retired, "an old connection ends with its last call"
    await server.stop()


def _apis() -> Iterator[Any]:
    """The module of every API that has a file."""
    for proto in sorted((ROOT / "protos").glob("shuntserve/*/v1/*.proto")):
        name = ".".join(proto.relative_to(ROOT / "protos").with_suffix("").parts)
        yield importlib.import_module(f"{name}_pb2")


class _Anything(grpc.GenericRpcHandler):
    """Every RPC there is; each answers that it was reached."""

    def __init__(self) -> None:
        self.methods = {
            f"/{service.full_name}/{rpc.name}": rpc
            for module in _apis()
            for service in module.DESCRIPTOR.services_by_name.values()
            for rpc in service.methods
        }

    def service(self, details: Any) -> Any:
        rpc = self.methods.get(details.method)
        if rpc is None:
            return None

        async def one(request: Any, context: Any) -> bytes:
            return b""

        async def many(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield b""

        kind = KINDS[rpc.client_streaming, rpc.server_streaming]
        made = getattr(grpc, f"{kind}_rpc_method_handler")
        reader = message_factory.GetMessageClass(rpc.input_type).FromString
        return made(many if rpc.server_streaming else one, reader, None)


async def _answer(channel: grpc.aio.Channel, method: str, rpc: Any) -> grpc.StatusCode:
    call = getattr(channel, KINDS[rpc.client_streaming, rpc.server_streaming])(method)
    request = iter([b""]) if rpc.client_streaming else b""
    try:
        if rpc.server_streaming:
            assert [answer async for answer in call(request, timeout=60)] == [b""]
        else:
            assert await call(request, timeout=60) == b""
    except grpc.aio.AioRpcError as refused:
        return refused.code()
    return grpc.StatusCode.OK


async def test_every_rpc_of_every_service_is_for_its_callers_alone(authority: Authority) -> None:
    tls = TlsSettings(**authority.issue("controller"))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [])
    rpcs = _Anything()
    server.grpc_server.add_generic_rpc_handlers((rpcs,))
    port = await server.start()
    answered = dict[tuple[str, str], bool]()
    for role in (*Role, "nobody", ""):
        caller = TlsSettings(**authority.issue(role))
        async with channels.open_channel(
            f"127.0.0.1:{port}", Role.CONTROLLER, tls=caller
        ) as channel:
            for method, rpc in rpcs.methods.items():
                code = await _answer(channel, method, rpc)
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED)
                answered[method, role] = code is grpc.StatusCode.OK
    may = {
        (f"/{service}/{rpc}", role)
        for service, rpcs_of in CALLERS.items()
        for rpc, callers in rpcs_of.items()
        for role in callers
    }
    assert {call for call, reached in answered.items() if reached} == may
    assert len(answered) == len(rpcs.methods) * (len(Role) + 2)
    await server.stop()
