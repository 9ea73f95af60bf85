"""The controller of a mesh, as commands reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.mesh_status import leading
from services.common import channels
from services.common.roles import Role
from services.common.settings import TlsSettings

CALL_S = 10.0
"""An answer is waited for so long, where a command names no other limit."""


class ControllerAwayError(MeshError):
    """The mesh runs, its controller does not just now: its supervisor starts it again."""


async def controller_address(directory: MeshDirectory) -> str:
    """Of the one that leads; raises as `controller_of` does."""
    address = await leading(directory.running())
    if address is None:
        raise ControllerAwayError("the controller is being started again; ask once more")
    return address


@asynccontextmanager
async def controller_of(
    directory: MeshDirectory,
) -> AsyncIterator[controller_pb2_grpc.ControllerServiceAsyncStub]:
    """Its stub, for the length of the block; raises MeshError where no mesh runs, and
    ControllerAwayError where the mesh has none at the moment."""
    address = await controller_address(directory)
    async with channels.open_channel(address, Role.CONTROLLER, tls=TlsSettings()) as channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)
