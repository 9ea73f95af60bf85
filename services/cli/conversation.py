"""Streams answers from routers over gRPC; a router that dies is replaced by the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import grpc
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.cli.mesh_directory import MeshError
from services.common import api_keys, channels
from services.common.roles import Role
from services.common.settings import TlsSettings

STREAM_TIMEOUT_S = 600.0
CANCEL_TIMEOUT_S = 5.0
RECONNECT_S = 30.0
PAUSE_S = 0.2
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


async def stream(
    routers: Sequence[str], request: router_pb2.GenerateRequest
) -> AsyncIterator[router_pb2.GenerateResponse]:
    """The events of one generation, from whichever router serves it. Cancelling the task cancels
    the generation.

    Raises MeshError for an answer that is an error, or when no router answers for RECONNECT_S. A
    router that asks for a key is shown the environment's SHUNT_API_KEY.
    """
    generation_id, last_event_id, turn = "", "", 0
    deadline, shown = time.monotonic() + RECONNECT_S, api_keys.metadata()
    while True:
        router = routers[turn % len(routers)]
        async with channels.open_channel(router, Role.ROUTER, tls=TlsSettings()) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            try:
                if generation_id:
                    again = router_pb2.ResumeRequest(
                        generation_id=generation_id, last_event_id=last_event_id
                    )
                    resumed = stub.Resume(again, timeout=STREAM_TIMEOUT_S, metadata=shown)
                    async for answer in resumed:
                        last_event_id = answer.event.event_id
                        deadline = time.monotonic() + RECONNECT_S
                        yield answer.event
                else:
                    asked = stub.Generate(request, timeout=STREAM_TIMEOUT_S, metadata=shown)
                    async for event in asked:
                        generation_id, last_event_id = event.generation_id, event.event_id
                        deadline = time.monotonic() + RECONNECT_S
                        yield event
                return
            except asyncio.CancelledError:
                if generation_id:
                    cancel = router_pb2.CancelRequest(generation_id=generation_id)
                    with suppress(grpc.aio.AioRpcError):  # it is parked, and ends by itself
                        await stub.Cancel(cancel, timeout=CANCEL_TIMEOUT_S, metadata=shown)
                raise
            except grpc.aio.AioRpcError as error:
                if not _broken(error) or time.monotonic() > deadline:
                    raise MeshError(_told(error)) from None
        turn += 1
        await asyncio.sleep(PAUSE_S)


def _broken(error: grpc.aio.AioRpcError) -> bool:
    """Whether another try may help: not where the router itself says that it was cancelled."""
    told = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
    return error.code() in _BROKEN and not (told and error.code() is grpc.StatusCode.CANCELLED)


def _told(error: grpc.aio.AioRpcError) -> str:
    said = error.details() or error.code().name
    refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
    return f"{said}; {api_keys.ADVICE}" if refused else said
