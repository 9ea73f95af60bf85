"""The controller as a router sees it: every call with a deadline, every failure a domain error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common import telemetry
from services.common import wire as common_wire
from services.common.demand import Demand, Shares, TenantDemand
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
from services.router.controllers import Controllers

_log = logging.getLogger(__name__)
WATCH_PAUSE_S = 0.2
WATCH_PAUSE_MAX_S = 1.0

News = tuple[Sequence[Route], Sequence[str], Sequence[DeployedModel]]
"""Routes, formations that hand over, models that are deployed."""


class ControllerClient:
    """Calls over a channel to each controller, of which one leads."""

    def __init__(
        self, channels: Sequence[grpc.aio.Channel], timeout_s: float, watch_s: float
    ) -> None:
        stubs = [controller_pb2_grpc.ControllerServiceStub(channel) for channel in channels]
        self._controllers = Controllers(stubs)
        self._news: dict[int, News] = {}
        """The newest of each controller that has a stream of routes."""
        self._timeout_s = timeout_s
        self._watch_s = watch_s

    @property
    def controllers(self) -> Controllers:
        """For calls about something else."""
        return self._controllers

    async def resume(self, question: ResumeQuestion, timeout_s: float) -> Grant:
        request = wire.question_to(question)
        return wire.grant_from(
            await self._controllers.call(
                lambda stub, left_s: stub.Resume(
                    request, timeout=left_s, metadata=telemetry.metadata()
                ),
                timeout_s,
            )
        )

    async def generation(self, generation_id: str) -> GenerationView:
        """What the journal holds."""
        request = controller_pb2.GetGenerationRequest(generation_id=generation_id)
        return wire.view_from(
            await self._controllers.call(
                lambda stub, left_s: stub.GetGeneration(
                    request, timeout=left_s, metadata=telemetry.metadata()
                ),
                self._timeout_s,
            )
        )

    async def claim(self, ask_digest: str) -> GenerationView:
        """What an equal ask began and nobody reads, for a retry to go on with."""
        request = controller_pb2.ClaimGenerationRequest(ask_digest=ask_digest)
        claimed = await self._controllers.call(
            lambda stub, left_s: stub.ClaimGeneration(
                request, timeout=left_s, metadata=telemetry.metadata()
            ),
            self._timeout_s,
        )
        return wire.view_from(claimed.generation)

    async def claim_background(self, at_most: int) -> Sequence[str]:
        """Names of what is to run though nobody reads it, for this router to read."""
        request = controller_pb2.ClaimBackgroundRequest(at_most=at_most)
        claimed = await self._controllers.call(
            lambda stub, left_s: stub.ClaimBackground(request, timeout=left_s), self._timeout_s
        )
        return claimed.generation_ids

    async def delete(self, generation_id: str) -> None:
        """Ends a generation and deletes it."""
        request = controller_pb2.DeleteGenerationRequest(generation_id=generation_id)
        await self._controllers.call(
            lambda stub, left_s: stub.DeleteGeneration(
                request, timeout=left_s, metadata=telemetry.metadata()
            ),
            self._timeout_s,
        )

    async def cancel(
        self,
        generation_id: str,
        reason: CancelReason,
        choice: int | None = None,
        length: int | None = None,
        tenant: str | None = None,
    ) -> None:
        """`tenant`: on whose behalf, where it is a client's; another one's raises NotFound."""
        request = controller_pb2.CancelRequest(
            generation_id=generation_id,
            choice=choice,
            reason=common_wire.cancel_reason_to(reason),
            length=length,
            tenant=tenant,
        )
        await self._controllers.call(
            lambda stub, left_s: stub.Cancel(
                request, timeout=left_s, metadata=telemetry.metadata()
            ),
            self._timeout_s,
        )

    async def report_demand(
        self,
        router_id: str,
        incarnation: str,
        measured_s: float,
        demands: Mapping[str, Demand],
        tenants: Mapping[str, TenantDemand],
        routers: int,
    ) -> Shares:
        """Tells what is asked for here, as counts since the start, and hears which share of
        tenants' limits is this router's."""
        request = wire.demand_to(router_id, incarnation, measured_s, demands, tenants, routers)
        return wire.shares_from(
            await self._controllers.call(
                lambda stub, left_s: stub.ReportDemand(request, timeout=left_s), self._timeout_s
            )
        )

    async def watch_routes(
        self,
        router_id: str,
        changed: Callable[[Sequence[Route], Sequence[str], Sequence[DeployedModel]], None],
    ) -> None:
        """Reports the routes, the formations that hand over, and the models that are deployed,
        whenever one of them changes, for ever.
        While the controller is away, what was reported last stands."""
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._controllers.stubs)):
                group.create_task(self._watch(index, router_id, changed))

    async def _watch(
        self,
        index: int,
        router_id: str,
        changed: Callable[[Sequence[Route], Sequence[str], Sequence[DeployedModel]], None],
    ) -> None:
        pause_s = WATCH_PAUSE_S
        while True:
            try:
                async for news in self._routes(index, router_id):
                    pause_s = WATCH_PAUSE_S
                    self._news[index] = news
                    if self._controllers.heard(index):
                        changed(*news)
            except ShuntError as error:
                leads = self._controllers.leader == index
                _log.log(
                    logging.WARNING if leads else logging.DEBUG,
                    "no routes",
                    extra={"reason": error.message},
                )
            next_one = self._controllers.lost(index)
            if next_one is not None:
                changed(*self._news[next_one])
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, WATCH_PAUSE_MAX_S)

    async def _routes(self, index: int, router_id: str) -> AsyncIterator[News]:
        request = controller_pb2.WatchRoutesRequest(router_id=router_id)
        call = self._controllers.stubs[index].WatchRoutes(request, timeout=self._watch_s)
        try:
            async for message in call:
                routes = [wire.route_from(route) for route in message.routes]
                deployed = [wire.deployed_from(one) for one in message.deployed]
                yield routes, list(message.handing_over_formation_ids), deployed
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
