"""The gRPC edge of the controller: parse, ask the cluster or the ledger, build the reply."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import channels, guards, logs
from services.common import wire as common_wire
from services.common.errors import InvalidArgument, NotFound, ShuntError
from services.common.exchange import CheckpointResult
from services.common.generation import CancelReason
from services.controller import metrics, wire, wire_demand
from services.controller.core.cluster.market import MAX_NOTICE_S
from services.controller.core.ledger.outcomes import ServingHead
from services.controller.dealing import Dealing
from services.controller.deployments import Deployments
from services.controller.documents import DocumentRpcs, DocumentRuntime
from services.controller.engines import Engines
from services.controller.event_log import EventLog
from services.controller.generations import LedgerRuntime
from services.controller.plan_rpcs import PlanRpcs
from services.controller.processes import Processes
from services.controller.replans import Replans
from services.controller.runtime import ClusterRuntime
from services.controller.status_rpcs import StatusRpcs
from services.controller.what_ifs import WhatIfs

_log = logging.getLogger(__name__)

MAX_CHECKPOINTS = 4096
MAX_CLAIMED = 1000
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Limits and timings (seconds) of the edge."""

    resume_wait_s: float = 60.0
    """A Resume waits this long for a head, or as long as its caller does."""
    resume_margin_s: float = 0.2
    """Left of the caller's deadline for the answer to travel."""
    checkpoints_in_flight: int = 64
    """Messages of one head that may wait for the journal."""


class ControllerService(
    DocumentRpcs, PlanRpcs, StatusRpcs, controller_pb2_grpc.ControllerServiceServicer
):
    """ControllerService."""

    def __init__(
        self,
        limits: ServiceLimits,
        *,
        runtime: ClusterRuntime,
        replans: Replans,
        what_ifs: WhatIfs,
        generations: LedgerRuntime,
        events: EventLog,
        engines: Engines,
        deployments: Deployments,
        documents: DocumentRuntime,
        dealing: Dealing,
    ) -> None:
        self._limits = limits
        self._runtime = runtime
        self._replans = replans
        self._what_ifs = what_ifs
        self._generations = generations
        self._events = events
        self._engines = engines
        self._deployments = deployments
        self._dealing = dealing
        self._documents = documents
        self._routers: Counter[str] = Counter()
        self._processes: Processes | None = None
        self._passing_on: set[asyncio.Task[None]] = set()

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        facts = wire.facts_from(request)
        await self._runtime.started.wait()
        self._known_processes().registered(facts.node_id, facts.incarnation)
        await self._runtime.register(facts)
        # An engine of an earlier version keeps what it is told here, whatever the cluster becomes.
        interval_s = self._runtime.cluster.settings.heartbeat_interval_s
        return pb.RegisterResponse(heartbeat_interval_s=interval_s)

    async def Heartbeat(
        self, requests: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        node_id = ""
        await self._runtime.started.wait()
        try:
            async for request in requests:
                beat = wire.beat_from(request)
                if node_id and beat.node_id != node_id:
                    raise InvalidArgument("one stream is one node's", field="node_id")
                node_id = beat.node_id
                try:
                    self._runtime.heartbeat(beat)
                    self._known_processes().registered(beat.node_id, beat.incarnation)
                    if not request.no_answer:
                        yield self._answer(beat.incarnation)
                except NotFound:
                    yield pb.HeartbeatResponse(register_again=True)
        finally:
            if node_id:
                self._runtime.suspect(node_id)

    def _answer(self, incarnation: str) -> pb.HeartbeatResponse:
        interval_s = self._runtime.cluster.tell_interval_s(incarnation)
        return pb.HeartbeatResponse(heartbeat_interval_s=interval_s)

    async def StreamCheckpoints(
        self, requests: AsyncIterator[pb.StreamCheckpointsRequest], context: Context
    ) -> AsyncIterator[pb.StreamCheckpointsResponse]:
        waiting: asyncio.Queue[tuple[int, asyncio.Future[list[CheckpointResult]]] | None]
        waiting = asyncio.Queue(self._limits.checkpoints_in_flight)
        taking = asyncio.create_task(self._take(requests, waiting))
        try:
            while (item := await waiting.get()) is not None:
                sequence, results = item
                yield pb.StreamCheckpointsResponse(
                    sequence=sequence,
                    results=[wire.result_to(result) for result in await results],
                )
            await taking
        finally:
            taking.cancel()
            while not waiting.empty():
                if (item := waiting.get_nowait()) is not None:
                    item[1].cancel()

    async def _take(
        self,
        requests: AsyncIterator[pb.StreamCheckpointsRequest],
        waiting: asyncio.Queue[tuple[int, asyncio.Future[list[CheckpointResult]]] | None],
    ) -> None:
        """Takes messages into the ledger without waiting for the journal."""
        try:
            async for request in requests:
                if len(request.checkpoints) > MAX_CHECKPOINTS:
                    raise InvalidArgument(
                        f"at most {MAX_CHECKPOINTS} a message", field="checkpoints"
                    )
                checkpoints = [
                    wire.checkpoint_from(message, self._vocab_size(message))
                    for message in request.checkpoints
                ]
                if node_id := guards.speaks_for():
                    for incarnation in {checkpoint.incarnation for checkpoint in checkpoints}:
                        self._known_processes().check(node_id, incarnation)
                await waiting.put((request.sequence, self._generations.checkpoint(checkpoints)))
        finally:
            await waiting.put(None)

    def _vocab_size(self, message: pb.Checkpoint | pb.ResumeRequest) -> int | None:
        """Of the model that a generation is of, as its request or the journal tell; None where that
        is not deployed, or not known."""
        model = self._generations.model_of(message.generation_id)
        if message.HasField("request"):
            model = common_wire.model_from(message.request.model)
        return self._deployments.vocab_size(model)

    def _known_processes(self) -> Processes:
        """Those of the journal too: a controller that was started again knows whose they are."""
        if self._processes is None:
            self._processes = Processes()
            for node in self._runtime.cluster.view.nodes():
                if node.incarnation:
                    self._processes.registered(node.node_id, node.incarnation)
        return self._processes

    async def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: Context
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        router_id = wire.name_from(request.router_id, "router_id")
        self._routers[router_id] += 1
        sent = -1
        try:
            while not self._runtime.closing:
                version, routes = self._runtime.cluster.routes()
                if version == sent:
                    await self._runtime.routes_changed.wait()
                    continue
                sent = version
                yield pb.WatchRoutesResponse(
                    version=version,
                    routes=[wire.route_to(route) for route in routes],
                    handing_over_formation_ids=self._runtime.cluster.handing_over(),
                    deployed=map(wire.deployed_to, self._runtime.cluster.view.models()),
                )
        finally:
            self._routers[router_id] -= 1
            self._routers += Counter()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        question = wire.question_from(request, self._vocab_size(request))
        logs.about(generation_id=question.generation_id)
        wait_s = channels.timeout(self._limits.resume_wait_s) - self._limits.resume_margin_s
        grant = await self._generations.resume(question, wait_s)
        metrics.RESUMES.inc(grant.epoch > question.last_epoch)
        return wire.grant_to(grant)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        generation_id = common_wire.generation_id_from(request.generation_id)
        logs.about(generation_id=generation_id)
        choice = request.choice if request.HasField("choice") else None
        if choice is not None and choice >= common_wire.MAX_CHOICES:
            raise InvalidArgument(f"choices lie below {common_wire.MAX_CHOICES}", field="choice")
        length = request.length if request.HasField("length") else None
        reason = common_wire.cancel_reason_from(request.reason)
        tenant = request.tenant if request.HasField("tenant") else None
        head = await self._generations.cancel(generation_id, choice, reason, length, tenant)
        self._tell(head, generation_id, choice, reason)
        return pb.CancelResponse()

    def _tell(
        self, head: ServingHead | None, generation_id: str, choice: int | None, reason: CancelReason
    ) -> None:
        if head is not None:
            told = asyncio.create_task(
                self._pass_on(head.route.address, generation_id, choice, reason)
            )
            self._passing_on.add(told)
            told.add_done_callback(self._passing_on.discard)

    async def _pass_on(
        self, address: str, generation_id: str, choice: int | None, reason: CancelReason
    ) -> None:
        """Tells the head; one that is not reached learns it from its next checkpoint."""
        try:
            await self._engines.cancel(address, generation_id, choice, reason)
        except ShuntError as error:
            _log.info("head not told of a cancel", extra={"why": error.message})

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationResponse:
        generation_id = common_wire.generation_id_from(request.generation_id)
        return wire.view_to(await self._generations.view(generation_id))

    async def ClaimGeneration(
        self, request: pb.ClaimGenerationRequest, context: Context
    ) -> pb.ClaimGenerationResponse:
        digest = common_wire.ask_digest_from(request.ask_digest)
        view = await self._generations.claim(digest)
        return pb.ClaimGenerationResponse(generation=wire.view_to(view))

    async def ClaimBackground(
        self, request: pb.ClaimBackgroundRequest, context: Context
    ) -> pb.ClaimBackgroundResponse:
        if not 1 <= request.at_most <= MAX_CLAIMED:
            raise InvalidArgument(f"at_most lies in [1, {MAX_CLAIMED}]", field="at_most")
        claimed = await self._generations.claim_background(request.at_most)
        return pb.ClaimBackgroundResponse(generation_ids=claimed)

    async def DeleteGeneration(
        self, request: pb.DeleteGenerationRequest, context: Context
    ) -> pb.DeleteGenerationResponse:
        generation_id = common_wire.generation_id_from(request.generation_id)
        logs.about(generation_id=generation_id)
        head = await self._generations.delete(generation_id)
        self._tell(head, generation_id, None, CancelReason.CLIENT)
        return pb.DeleteGenerationResponse()

    async def ReportInterruption(
        self, request: pb.ReportInterruptionRequest, context: Context
    ) -> pb.ReportInterruptionResponse:
        node_id = wire.name_from(request.node_id, "node_id")
        notice_s = request.notice_s
        if not math.isfinite(notice_s) or not 0 <= notice_s <= MAX_NOTICE_S:
            raise InvalidArgument(f"notice_s lies in [0, {MAX_NOTICE_S:g}]", field="notice_s")
        if request.kill and notice_s:
            raise InvalidArgument("a kill comes without notice", field="notice_s")
        await self._runtime.started.wait()
        event = await self._runtime.interrupt(node_id, notice_s, request.kill)
        return pb.ReportInterruptionResponse(event_number=event.number)

    async def ReportDemand(
        self, request: pb.ReportDemandRequest, context: Context
    ) -> pb.ReportDemandResponse:
        demand, tenants = wire_demand.demand_from(request), wire_demand.tenants_from(request)
        routers = min(request.routers, wire_demand.MAX_ROUTERS)
        self._replans.reported(*demand)
        return wire_demand.shares_to(await self._dealing.reported(demand[0], routers, tenants))

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        async for event in self._events.follow(request.from_number, wait=not request.no_wait):
            yield wire.event_to(event)
