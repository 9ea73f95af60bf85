"""The controller put together: journal, cluster, generations and their gRPC edge."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common.errors import ShuntError
from services.common.server import Server
from services.controller import metrics
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.replanning import Replanner
from services.controller.core.cluster.workload import Workloads
from services.controller.core.model_facts import ModelFacts
from services.controller.engines import Engines
from services.controller.event_log import EventLog
from services.controller.generations import LedgerRuntime
from services.controller.journal.journal import Journal, JournalRoom, Recovered, Saved
from services.controller.model_store import newest_digest
from services.controller.planning import Planning
from services.controller.providers.provider import Provider
from services.controller.replans import Replans
from services.controller.runtime import ClusterRuntime
from services.controller.service import ControllerService, ServedVersion
from services.controller.settings import ControllerSettings
from services.controller.signal import Signal
from services.controller.what_ifs import WhatIfs

_log = logging.getLogger(__name__)

SERVICE = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name
FACTS = "model"
HOUSEKEEPING_S = 1.0
STORE_CHECK_S = 5.0


class AssembledController:
    """One controller process; `serving` is its life."""

    def __init__(
        self,
        settings: ControllerSettings,
        facts: ModelFacts,
        *,
        journal: Journal,
        recovered: Recovered,
        provider: Provider,
    ) -> None:
        """`recovered` is what the journal held when it was opened."""
        self.port = 0
        """Where it listens, once it serves."""
        self._settings = settings
        self._facts = facts
        self._journal = journal
        self._provider = provider
        self._saved = recovered.saved
        self._newer_digest = ""
        clock = time.monotonic
        heads_changed = Signal()
        self.events = EventLog(journal, time.time, settings.events_kept)
        self.events.recover(recovered.events)
        self._engines = Engines(
            settings.engine_timeouts,
            max_message_bytes=settings.max_message_bytes,
            tls=settings.tls,
        )
        self._planning = Planning(
            settings.placement_address,
            facts,
            planner=settings.planner,
            timeout_s=settings.plan_timeout_s,
            tls=settings.tls,
        )
        self._runtime = ClusterRuntime(
            self._cluster(recovered, clock()),
            settings.runtime,
            provider=provider,
            engines=self._engines,
            planning=self._planning,
            journal=journal,
            events=self.events,
            heads_changed=heads_changed,
            clock=clock,
        )
        self._replans = Replans(
            Replanner(settings.replanning),
            settings.wishes,
            settings.replans,
            cluster=lambda: self._runtime.cluster,
            market=self._runtime.market,
            workloads=Workloads(settings.workloads, clock()),
            placement=self._planning,
            adopt=self._runtime.adopt,
            events=self.events,
            changed=self._runtime.changed,
            clock=clock,
        )
        self._generations = LedgerRuntime(
            settings.ledger,
            journal,
            self.events,
            heads=lambda: self._runtime.cluster.heads(clock()),
            pipeline_of=lambda formation_id: self._runtime.cluster.pipeline_of(formation_id),
            heads_changed=heads_changed,
            clock=clock,
        )
        self._generations.recover(recovered)
        self._server = Server(settings, [SERVICE])
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(
            ControllerService(
                settings.limits,
                vocab_size=facts.vocab_size,
                runtime=self._runtime,
                replans=self._replans,
                what_ifs=WhatIfs(
                    self._replans.imagined,
                    market=self._runtime.market,
                    placement=self._planning,
                ),
                generations=self._generations,
                events=self.events,
                engines=self._engines,
                served=ServedVersion(facts.ref, lambda: self._newer_digest),
            ),
            self._server.grpc_server,
        )

    def _cluster(self, recovered: Recovered, now_s: float) -> Cluster:
        settings = self._settings.cluster(self._facts)
        return Cluster.recover(settings, _draw_id, recovered.saved, now_s, time.time())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serves inside the block; gives the port. The journal stays open behind it."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._planning.close)
            stack.push_async_callback(self._provider.close)
            stack.push_async_callback(self._end_nodes)
            await self._journal.write((Saved(FACTS, self._facts.to_json()),), fsync=True)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self.port = await self._server.start()
            work = [
                tasks.create_task(self._runtime.run(self._saved)),
                tasks.create_task(self._keep_house()),
                tasks.create_task(self._watch_store()),
                tasks.create_task(self._replans.run()),
            ]
            try:
                await self._runtime.started.wait()
                await self._server.set_ready(True)
                yield self.port
            finally:
                self._runtime.close()
                self.events.close()
                await self._server.stop()
                await self._runtime.settle()
                for task in work:
                    task.cancel()

    async def until_serving(self) -> None:
        """Returns once some pipeline takes requests."""
        await self._runtime.serving.wait()

    async def _keep_house(self) -> None:
        room = JournalRoom.ENOUGH
        while True:
            room = await self._mind_the_disk(room)
            try:
                await self._generations.tick()
            except ShuntError as error:
                _log.error("nothing was forgotten", extra={"why": error.message})
            cluster = self._runtime.cluster
            metrics.show_cluster(cluster.nodes_view(), cluster.pipelines_view())
            metrics.OPEN.set(len(self._generations.population().open))
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _watch_store(self) -> None:
        """Tells when somebody imports another version; what runs stays what it is."""
        settings, served = self._settings, self._facts.ref
        while True:
            await asyncio.sleep(STORE_CHECK_S)
            try:
                found = await newest_digest(
                    settings.tensorstore_address,
                    served.model_id,
                    timeout_s=settings.describe_timeout_s,
                    tls=settings.tls,
                )
            except ShuntError:
                continue  # a store that is away, or has the name no more, has nothing newer
            newer = "" if found == served.digest else found
            if newer and newer != self._newer_digest:
                attributes = {"served": served.digest, "stored": newer}
                self.events.add("model_newer_in_store", attributes=attributes)
            self._newer_digest = newer

    async def _mind_the_disk(self, before: JournalRoom) -> JournalRoom:
        self._journal.tend()
        room = self._journal.room
        if room is not before:
            self.events.add("journal_room", attributes={"left": room.value})
            await self._server.set_ready(room is not JournalRoom.NONE)
        metrics.show_room(room)
        return room

    async def _end_nodes(self) -> None:
        if self._settings.end_nodes_on_stop:
            await self._runtime.end_nodes()


def _draw_id() -> str:
    return uuid.uuid4().hex
