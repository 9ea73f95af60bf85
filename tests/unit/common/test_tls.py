"""Servers of the kit with real certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common import channels
from services.common.errors import PermissionDenied
from services.common.server import Server
from services.common.settings import ServiceSettings, TlsSettings
from services.common.statuses import from_rpc_error
from tests.certificates import Authority

NAME = "shuntserve.controller.v1.ControllerService"


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
        async with channels.open_channel(f"127.0.0.1:{port}", tls=caller) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            yield controller_pb2_grpc.ControllerServiceStub(channel)
    finally:
        await server.stop()


async def _routes(stub: controller_pb2_grpc.ControllerServiceStub) -> int:
    watch = stub.WatchRoutes(controller_pb2.WatchRoutesRequest(), timeout=10)
    return len([message async for message in watch])


async def _beats(stub: controller_pb2_grpc.ControllerServiceStub, node_id: str) -> int:
    beat = controller_pb2.HeartbeatRequest(node_id=node_id)
    return len([message async for message in stub.Heartbeat(iter([beat, beat]), timeout=10)])


async def _register(stub: controller_pb2_grpc.ControllerServiceStub, node_id: str) -> None:
    await stub.Register(controller_pb2.RegisterRequest(node_id=node_id), timeout=10)


async def test_a_role_may_call_what_the_table_allows(authority: Authority) -> None:
    async with _asked_by(authority, "router") as stub:
        assert await _routes(stub) == 1
    async with _asked_by(authority, "engine") as stub:
        await _register(stub, "node-1")
        assert await _beats(stub, "node-2") == 2


@pytest.mark.parametrize("identity", ["engine", "client", "", "nobody"])
async def test_a_wrong_role_is_denied(authority: Authority, identity: str) -> None:
    async with _asked_by(authority, identity) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _routes(stub)
        assert isinstance(from_rpc_error(refused.value), PermissionDenied)


async def test_a_nodes_certificate_registers_that_node_only(authority: Authority) -> None:
    async with _asked_by(authority, "engine/node-1") as stub:
        await _register(stub, "node-1")
        assert await _beats(stub, "node-1") == 2
        for stolen in (_register(stub, "node-2"), _beats(stub, "node-2")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stolen
            assert isinstance(from_rpc_error(refused.value), PermissionDenied)


async def test_who_has_no_certificate_is_not_heard(authority: Authority) -> None:
    tls = TlsSettings(**authority.issue("controller"))
    server = Server(ServiceSettings(shutdown_grace_s=0, tls=tls), [NAME])
    port = await server.start()
    async with channels.open_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop()
