"""The controller as a router sees it: every call with a deadline, every failure a domain error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common import channels, telemetry
from services.common import wire as common_wire
from services.common.demand import Demand
from services.common.errors import ShuntError
from services.common.exchange import (
    DeployedModel,
    GenerationView,
    Grant,
    ResumeQuestion,
    Route,
)
from services.common.generation import CancelReason
from services.common.statuses import from_rpc_error
from services.router import wire

_log = logging.getLogger(__name__)
WATCH_PAUSE_S = 0.2
WATCH_PAUSE_MAX_S = 1.0


class ControllerClient:
    """Calls over one channel."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float, watch_s: float) -> None:
        self._stub = controller_pb2_grpc.ControllerServiceStub(channel)
        self._timeout_s = timeout_s
        self._watch_s = watch_s

    async def resume(self, question: ResumeQuestion, timeout_s: float) -> Grant:
        try:
            return wire.grant_from(
                await self._stub.Resume(
                    wire.question_to(question),
                    timeout=channels.timeout(timeout_s),
                    metadata=telemetry.metadata(),
                )
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def generation(self, generation_id: str) -> GenerationView:
        """What the journal holds."""
        try:
            return wire.view_from(
                await self._stub.GetGeneration(
                    controller_pb2.GetGenerationRequest(generation_id=generation_id),
                    timeout=channels.timeout(self._timeout_s),
                    metadata=telemetry.metadata(),
                )
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def claim(self, ask_digest: str) -> GenerationView:
        """What an equal ask began and nobody reads, for a retry to go on with."""
        try:
            claimed = await self._stub.ClaimGeneration(
                controller_pb2.ClaimGenerationRequest(ask_digest=ask_digest),
                timeout=channels.timeout(self._timeout_s),
                metadata=telemetry.metadata(),
            )
            return wire.view_from(claimed.generation)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def cancel(
        self,
        generation_id: str,
        reason: CancelReason,
        choice: int | None = None,
        length: int | None = None,
    ) -> None:
        try:
            await self._stub.Cancel(
                controller_pb2.CancelRequest(
                    generation_id=generation_id,
                    choice=choice,
                    reason=common_wire.cancel_reason_to(reason),
                    length=length,
                ),
                timeout=channels.timeout(self._timeout_s),
                metadata=telemetry.metadata(),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def report_demand(
        self,
        router_id: str,
        incarnation: str,
        measured_s: float,
        demands: Mapping[str, Demand],
    ) -> None:
        """Tells what is asked for here, as counts since the start."""
        try:
            await self._stub.ReportDemand(
                wire.demand_to(router_id, incarnation, measured_s, demands),
                timeout=channels.timeout(self._timeout_s),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def watch_routes(
        self,
        router_id: str,
        changed: Callable[[Sequence[Route], Sequence[str], Sequence[DeployedModel]], None],
    ) -> None:
        """Reports the routes, the formations that hand over, and the models that are deployed,
        whenever one of them changes, for ever.
        While the controller is away, what was reported last stands."""
        pause_s = WATCH_PAUSE_S
        while True:
            try:
                async for news in self._routes(router_id):
                    pause_s = WATCH_PAUSE_S
                    changed(*news)
            except ShuntError as error:
                _log.warning("no routes", extra={"reason": error.message})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, WATCH_PAUSE_MAX_S)

    async def _routes(
        self, router_id: str
    ) -> AsyncIterator[tuple[list[Route], list[str], list[DeployedModel]]]:
        request = controller_pb2.WatchRoutesRequest(router_id=router_id)
        call = self._stub.WatchRoutes(request, timeout=self._watch_s)
        try:
            async for message in call:
                routes = [wire.route_from(route) for route in message.routes]
                deployed = [wire.deployed_from(one) for one in message.deployed]
                yield routes, list(message.handing_over_formation_ids), deployed
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
