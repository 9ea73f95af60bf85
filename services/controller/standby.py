"""What a controller that does not lead tells who calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NoReturn

from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common.errors import Unavailable
from services.common.server import Server
from services.controller.settings import ControllerSettings

_SERVICE = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"]
RETRY_S = 0.5


class Standby:
    """A server that is never ready, and answers every call with where the leader is."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.leader = ""
        """host:port; empty while nobody is known to lead."""
        self._server = Server(settings, [_SERVICE.full_name])
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(
            _refusals(self), self._server.grpc_server
        )

    async def start(self) -> int:
        """Returns the port; exits 2 like `Server.start`."""
        return await self._server.start()

    async def stop(self) -> None:
        """Leaves the port to the server of one that leads."""
        await self._server.stop()

    def refuse(self) -> NoReturn:
        where = f"the leader is at {self.leader}" if self.leader else "nobody leads yet"
        raise Unavailable(f"this controller is a standby: {where}", retry_after_s=RETRY_S)


def _refusals(standby: Standby) -> controller_pb2_grpc.ControllerServiceServicer:
    """Of every method there is."""

    async def once(service: object, request: Any, context: Any) -> None:
        standby.refuse()

    async def stream(service: object, request: Any, context: Any) -> AsyncIterator[None]:
        standby.refuse()
        yield  # what makes it a stream

    methods = {m.name: stream if m.server_streaming else once for m in _SERVICE.methods}
    made: controller_pb2_grpc.ControllerServiceServicer = type(
        "Refusals", (controller_pb2_grpc.ControllerServiceServicer,), methods
    )()
    return made
