"""`shunt interrupt`: tells the controller that a node goes away, or has it killed."""

from __future__ import annotations

import grpc
from shuntserve.controller.v1 import controller_pb2

from services.cli.controller_calls import CALL_S, controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError


async def interrupt(directory: MeshDirectory, node: str, notice_s: float, kill: bool) -> int:
    """Returns the number of the event in the controller's log; raises MeshError."""
    request = controller_pb2.ReportInterruptionRequest(
        node_id=node, notice_s=0.0 if kill else notice_s, kill=kill
    )
    async with controller_of(directory) as stub:
        try:
            answer = await stub.ReportInterruption(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"{node} cannot be interrupted: {error.details()}") from None
    return answer.event_number
