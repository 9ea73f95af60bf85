"""What the heads of a mesh have done."""

from __future__ import annotations

from typing import Any

from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels
from services.common.roles import Role


async def head_stats(controller: Any) -> dict[str, engine_pb2.EngineStats]:
    """By pipeline."""
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    found = {}
    for pipeline in status.pipelines:
        node = next(n for n in status.nodes if n.node_id == pipeline.stages[0].node_id)
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            answer = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
            found[pipeline.pipeline_id] = answer.stats
    return found
