"""The gRPC edge of the launcher: parse, ask the launcher, build the reply."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from shuntserve.launcher.v1 import launcher_pb2 as pb
from shuntserve.launcher.v1 import launcher_pb2_grpc

from services.common.errors import InvalidArgument
from services.launcher import wire
from services.launcher.launcher import Launcher

MAX_GRACE_S = 600.0
Context = grpc.aio.ServicerContext[Any, Any]


class LauncherServicer(launcher_pb2_grpc.LauncherServiceServicer):
    """LauncherService."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def Launch(self, request: pb.LaunchRequest, context: Context) -> pb.LaunchResponse:
        container = await self._launcher.launch(
            request.node_id, request.offer_id, dict(request.variables)
        )
        return pb.LaunchResponse(container=wire.container_to(container))

    async def End(self, request: pb.EndRequest, context: Context) -> pb.EndResponse:
        if not 0 <= request.grace_s <= MAX_GRACE_S:  # NaN lies nowhere
            raise InvalidArgument(f"grace_s lies in [0, {MAX_GRACE_S:g}]", field="grace_s")
        await self._launcher.end(request.node_id, request.grace_s)
        return pb.EndResponse()

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        async for said in self._launcher.watch():
            yield wire.said_to(said)
