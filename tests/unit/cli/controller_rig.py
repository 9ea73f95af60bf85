"""A mesh directory whose controller is played by the test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli.mesh_directory import MeshDirectory, MeshState, ServiceRecord


@asynccontextmanager
async def played(
    path: Path, controller: controller_pb2_grpc.ControllerServiceServicer
) -> AsyncIterator[MeshDirectory]:
    """Its state says that it runs for as long as this process does."""
    server = grpc.aio.server()
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    record = ServiceRecord("controller", os.getpid(), f"127.0.0.1:{port}", None)
    directory = MeshDirectory(path)
    directory.write(MeshState("played", os.getpid(), "m", "ready", "ready", (record,)))
    try:
        yield directory
    finally:
        await server.stop(0)
