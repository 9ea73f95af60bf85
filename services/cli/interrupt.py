"""`shunt interrupt`: tells the controller that a node goes away, or has it killed."""

from __future__ import annotations

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.cli.mesh_directory import MeshDirectory, MeshError
from services.common import channels
from services.common.settings import TlsSettings

TIMEOUT_S = 10.0


async def interrupt(directory: MeshDirectory, node: str, notice_s: float, kill: bool) -> int:
    """Returns the number of the event in the controller's log; raises MeshError."""
    address = directory.running().service("controller").grpc
    if address is None:
        raise MeshError("the controller has no address")
    request = controller_pb2.ReportInterruptionRequest(
        node_id=node, notice_s=0.0 if kill else notice_s, kill=kill
    )
    async with channels.open_channel(address, tls=TlsSettings()) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        try:
            answer = await stub.ReportInterruption(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"{node} cannot be interrupted: {error.details()}") from None
    return answer.event_number
