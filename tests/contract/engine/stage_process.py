"""A stage worker with the tiny backend in a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import sys

from shuntserve.engine.v1 import engine_pb2_grpc

from services.common.server import Server
from services.engine.assembly import assemble
from services.engine.service import EngineService
from services.engine.settings import EngineSettings
from tests.contract.engine.tiny import TinyLoader


async def serve(node_id: str, step_s: float) -> None:
    settings = EngineSettings(node_id=node_id, shutdown_grace_s=0)
    engine = assemble(settings, TinyLoader(step_s))
    server = Server(settings, ["shuntserve.engine.v1.EngineService"])
    engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineService(engine), server.grpc_server)
    port = await server.start()
    print(f"{port} {engine.incarnation}", flush=True)
    await engine.run()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
