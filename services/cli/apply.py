"""`shunt plan apply`: hands the running mesh a plan, which it carries out while it serves."""

from __future__ import annotations

from pathlib import Path

import grpc
from shuntserve.controller.v1 import controller_pb2

from services.cli.controller_calls import CALL_S, controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError

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
    async with controller_of(directory) as stub:
        try:
            request = controller_pb2.ApplyPlanRequest(plan_json=text, source=path.name)
            answer = await stub.ApplyPlan(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"{path}: {error.details()}") from None
    return int(answer.number)
