"""How a mesh on EC2 is seen from outside: its gateway, and its controller where operators may
reach it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.cli.event_lines import Event
from services.cli.mesh_status import controller_status, told_by_controller
from services.common import channels, health
from services.common.certificate_files import CERTIFICATE
from services.common.roles import Role
from services.common.settings import TlsSettings

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a controller says of its mesh."""

    status: dict[str, Any]
    """As `shunt status --json` has it."""
    events: tuple[Event, ...]


def waits_for(url: str) -> health.Complaint | None:
    """What stands between the gateway and answers; None when nothing does."""
    return health.complaint(f"{url}/readyz", TIMEOUT_S)


def controller_told(address: str, certificates: Path, since: int = 0) -> Told | None:
    """What the controller knows, and its events from a number on, to who shows the operator's
    certificate. None where nobody reaches it."""
    if not address:
        return None
    return asyncio.run(_told(address, _shown(certificates), since))


def _shown(certificates: Path) -> TlsSettings:
    """What the environment names, else the mesh's own."""
    named = TlsSettings()
    if named.enabled or not (certificates / CERTIFICATE).exists():
        return named
    return TlsSettings(directory=certificates)


async def _told(address: str, tls: TlsSettings, since: int) -> Told | None:
    status = await controller_status(address, tls)
    if status is None:
        return None
    told = told_by_controller(status)
    for node in told["nodes"]:
        node["pid"] = None  # it is no process of this host
    request = controller_pb2.WatchEventsRequest(from_number=since, no_wait=True)
    async with channels.open_channel(address, Role.CONTROLLER, tls=tls) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        call = stub.WatchEvents(request, timeout=TIMEOUT_S)
        try:
            return Told(told, tuple([event async for event in call]))
        except grpc.aio.AioRpcError:
            return Told(told, ())
        finally:
            call.cancel()
