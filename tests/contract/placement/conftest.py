"""A running placement service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from shuntserve.placement.v1 import placement_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.common.server import Server
from services.placement.__main__ import SERVICE
from services.placement.estimate.catalogue import load_catalogue
from services.placement.service import PlacementServicer
from services.placement.settings import PlacementSettings


@asynccontextmanager
async def serving(settings: PlacementSettings) -> AsyncIterator[str]:
    server = Server(settings, [SERVICE])
    servicer = PlacementServicer(settings, load_catalogue())
    placement_pb2_grpc.add_PlacementServiceServicer_to_server(servicer, server.grpc_server)
    port = await server.start()
    await server.set_ready(True)
    yield f"127.0.0.1:{port}"
    await server.stop()
    servicer.close()


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with serving(PlacementSettings(grpc_port=0, shutdown_grace_s=0)) as found:
        yield found


@pytest.fixture
async def stub(address: str) -> AsyncIterator[placement_pb2_grpc.PlacementServiceStub]:
    async with channels.open_channel(address, Role.PLACEMENT) as channel:
        yield placement_pb2_grpc.PlacementServiceStub(channel)


@pytest.fixture
async def hurried_stub() -> AsyncIterator[placement_pb2_grpc.PlacementServiceStub]:
    """A service that searches for a fifth of a second at most."""
    settings = PlacementSettings(grpc_port=0, shutdown_grace_s=0, max_search_s=0.2)
    async with serving(settings) as found, channels.open_channel(found, Role.PLACEMENT) as channel:
        yield placement_pb2_grpc.PlacementServiceStub(channel)
