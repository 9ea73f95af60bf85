"""`shunt plan apply`: hands the running mesh a plan, which it carries out while it serves."""

from __future__ import annotations

from pathlib import Path

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.cli.mesh_directory import MeshDirectory, MeshError
from services.common import channels
from services.common.settings import TlsSettings

TIMEOUT_S = 10.0
MAX_BYTES = 4 << 20


def read_plan(path: Path) -> str:
    """The text of a plan's file; raises MeshError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MeshError(f"{path}: a plan has at most {MAX_BYTES} bytes")
        return path.read_text()
    except OSError as error:
        raise MeshError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MeshError(f"{path}: not UTF-8") from None


async def apply_plan(directory: MeshDirectory, path: Path) -> int:
    """Returns the plan's number; raises MeshError, naming the field that is wrong."""
    text = read_plan(path)
    address = directory.running().service("controller").grpc
    if address is None:
        raise MeshError("the controller has no address")
    async with channels.open_channel(address, tls=TlsSettings()) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        try:
            request = controller_pb2.ApplyPlanRequest(plan_json=text)
            answer = await stub.ApplyPlan(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"{path}: {error.details()}") from None
    return int(answer.number)
