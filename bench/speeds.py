"""The speeds that nodes of a mesh were declared to have, and those that they achieved."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels
from services.common.roles import Role


@dataclass(frozen=True, slots=True)
class NodeSpeed:
    """Of one node, since its process began."""

    node_id: str
    offer_id: str
    declared: float
    achieved: float
    """On the same scale; less where it waited for a core and had no rest to shorten."""
    slowness: float
    """Seconds that its steps took, for each that they were computed."""


async def node_speeds(controller: grpc.aio.Channel) -> list[NodeSpeed]:
    """Of the nodes that made steps."""
    stub = controller_pb2_grpc.ControllerServiceStub(controller)
    status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    speeds = []
    for node in status.nodes:
        if node.state != controller_pb2.NODE_STATE_READY:
            continue
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            engine = engine_pb2_grpc.EngineServiceStub(channel)
            told = await engine.Describe(engine_pb2.DescribeRequest(), timeout=60)
        stats, declared = told.stats, node.machine.relative_speed
        if stats.computed_s:
            slowness = stats.stepped_s / stats.computed_s
            achieved = declared / slowness / told.core_share
            speeds.append(NodeSpeed(node.node_id, node.offer_id, declared, achieved, slowness))
    return speeds
