"""How long an engine has for what it is asked."""

from __future__ import annotations

from typing import Any

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common.generation import LayerRange
from services.common.nodes import Member
from services.controller.engines import Engines, EngineTimeouts

DRAIN_S, KEEP_S = 30.0, 500.0


class Draining(engine_pb2_grpc.EngineServiceServicer):
    """A head that has nothing to seal."""

    def __init__(self) -> None:
        self.remaining_s: list[float] = []

    async def Drain(
        self,
        request: engine_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> engine_pb2.DrainResponse:
        self.remaining_s.append(context.time_remaining())
        return engine_pb2.DrainResponse()


async def test_a_drain_may_take_as_long_as_the_blocks_that_it_keeps() -> None:
    server, draining = grpc.aio.server(), Draining()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(draining, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    engines = Engines(EngineTimeouts(drain_s=DRAIN_S), max_message_bytes=1 << 20)
    head = Member("n", "i", address, LayerRange(0, 1))
    try:
        await engines.drain("f", head)
        await engines.drain("f", head, keep_kv=True, keep_s=KEEP_S)
    finally:
        await engines.close()
        await server.stop(None)
    short_s, long_s = draining.remaining_s
    assert 0 < short_s < 2 * DRAIN_S < KEEP_S < long_s < KEEP_S + 2 * DRAIN_S
