"""Who among the members of a formation still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common.nodes import Member


async def silent(
    members: Sequence[Member], connect: Callable[[str], grpc.aio.Channel], timeout_s: float
) -> tuple[str, ...]:
    """Node ids of the members whose process did not answer, or is another one by now."""
    answers = await asyncio.gather(*(_answers(m, connect, timeout_s) for m in members))
    return tuple(m.node_id for m, answered in zip(members, answers, strict=True) if not answered)


async def _answers(
    member: Member, connect: Callable[[str], grpc.aio.Channel], timeout_s: float
) -> bool:
    async with connect(member.address) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        try:
            answer = await stub.Describe(engine_pb2.DescribeRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return answer.incarnation == member.incarnation
