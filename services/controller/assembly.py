"""The controller put together: journal, cluster, generations and their gRPC edge."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common.errors import ShuntError
from services.common.server import Server
from services.controller import metrics
from services.controller.core.cluster.budget import NOTE, Budget
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.replanning import Replanner
from services.controller.core.cluster.succession import Succession
from services.controller.core.cluster.workload import Workloads
from services.controller.core.model_facts import ModelFacts
from services.controller.dealing import Dealing
from services.controller.departures import Journaled
from services.controller.deployments import DEPLOYMENTS, Deployments, StoreAccess
from services.controller.documents import DocumentRuntime
from services.controller.engines import Engines
from services.controller.event_log import EventLog
from services.controller.generations import LedgerRuntime
from services.controller.journal.journal import Journal, JournalRoom, Recovered, Saved
from services.controller.kv_sources import KvSources
from services.controller.planning import Planning
from services.controller.providers.provider import Provider
from services.controller.replans import Replans
from services.controller.runtime import ClusterRuntime
from services.controller.service import ControllerService
from services.controller.settings import ControllerSettings
from services.controller.signal import Signal
from services.controller.what_ifs import WhatIfs

_log = logging.getLogger(__name__)

SERVICE = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name
HOUSEKEEPING_S = 1.0
SETTLE_S = 5.0
"""What is under way at the end is waited for so long."""


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
        """`facts` are of the model that the settings name, `recovered` is what the journal held
        when it was opened."""
        self.port = 0
        """Where it listens, once it serves."""
        self._settings = settings
        self._journal = journal
        self._provider = provider
        self._saved = recovered.saved
        self._budget_per_hour = _budget(recovered.saved, settings.budget_per_hour)
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
            planner=settings.makes_plans,
            anew=settings.capabilities.uniform,
            timeout_s=settings.plan_timeout_s,
            tls=settings.tls,
            offer_of=self._offer_of,
            stages=settings.planned_stages,
            phases=settings.planned_phases,
        )
        kv = KvSources(
            settings.hands_over_by,
            settings.handover_keep_s,
            clock,
            lambda formation_id: self._runtime.cluster.view.members(formation_id),
            fetch_s=settings.handover_fetch_s,
        )
        self._runtime = ClusterRuntime(
            self._cluster(facts, recovered, clock()),
            settings.runtime,
            provider=provider,
            engines=self._engines,
            kv=kv,
            planning=self._planning,
            journal=journal,
            events=self.events,
            journaled=Journaled(
                streams=lambda formation_id: self._generations.streams(formation_id),
                lengths=lambda model: self._generations.lengths(model),
                rates=lambda model, room: self._generations.rates(model, room),
                promise=lambda formation_id: self._generations.promise(formation_id),
            ),
            promise_onward=lambda name: self._generations.promise_onward(name),
            heads_changed=heads_changed,
            clock=clock,
        )
        self._replans = Replans(
            Succession(
                Replanner(settings.replanning),
                replace(settings.wishes, budget_per_hour=self._budget_per_hour),
                settings.succession,
                cluster=self._runtime.cluster,
                market=self._runtime.market,
                workloads=Workloads(settings.workloads, clock()),
            ),
            placement=self._planning,
            submit=self._runtime.carry_out,
            note_budget=self._note_budget,
            changed=self._runtime.changed,
            clock=clock,
        )
        self._deployments = Deployments(
            StoreAccess(
                settings.tensorstore_address, settings.describe_timeout_s, tls=settings.tls
            ),
            runtime=self._runtime,
            planning=self._planning,
            journal=journal,
            events=self.events,
        )
        self._generations = LedgerRuntime(
            settings.ledger,
            journal,
            self.events,
            heads=lambda: self._runtime.cluster.view.heads(clock()),
            coming=lambda: self._runtime.cluster.view.coming(),
            kv_source=kv.of,
            runs_at=lambda formation_id: self._runtime.cluster.view.runs_at(formation_id),
            deployed=lambda model: self._runtime.cluster.goals.have(model),
            began=self._runtime.generation_began,
            heads_changed=heads_changed,
            clock=clock,
        )
        self._generations.recover(recovered)
        self._server = Server(settings, [SERVICE])
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(
            ControllerService(
                settings.limits,
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
                deployments=self._deployments,
                documents=DocumentRuntime(
                    settings.documents,
                    journal,
                    recovered.saved,
                    clock=clock,
                    wall_clock=time.time,
                ),
                dealing=Dealing(journal, recovered.saved, clock),
            ),
            self._server.grpc_server,
        )

    def _cluster(self, facts: ModelFacts, recovered: Recovered, now_s: float) -> Cluster:
        settings, saved = self._settings.cluster(facts), recovered.saved
        settings = replace(settings, budget_per_hour=self._budget_per_hour)
        noted = saved.get(DEPLOYMENTS)
        goals = Goals.of(settings.first)
        if noted is not None:
            goals = Goals.from_json(noted).begun_with(settings.first)
        return Cluster.recover(settings, _draw_id, saved, now_s, time.time(), goals)

    async def _note_budget(self, per_hour: float) -> None:
        noted = Budget(per_hour, self._settings.budget_per_hour)
        await self._journal.write((Saved(NOTE, noted.to_json()),), fsync=True)

    def _offer_of(self, node_id: str) -> Offer | None:
        market = self._runtime.market
        return market.offer(market.offer_id_of(node_id))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serves inside the block; gives the port. The journal stays open behind it."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._planning.close)
            stack.push_async_callback(self._provider.close)
            stack.push_async_callback(self._end_nodes)
            await self._deployments.write(self._deployments.goals)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self.port = await self._server.start()
            work = [
                tasks.create_task(self._runtime.run(self._saved)),
                tasks.create_task(self._keep_house()),
                tasks.create_task(self._mind_the_journal()),
                tasks.create_task(self._deployments.watch_store()),
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
                with suppress(TimeoutError):  # a journal that is away holds nobody's end up
                    async with asyncio.timeout(SETTLE_S):
                        await self._runtime.settle()
                for task in work:
                    task.cancel()

    @property
    def plan_number(self) -> int:
        """Of the plan that is carried out; 0 while there is none."""
        plan = self._runtime.cluster.plan
        return 0 if plan is None else plan.number

    def known_nodes(self) -> Set[str] | None:
        """All that the cluster knows, lost ones too; None until it was looked for those launched
        before a restart, and while another controller might know others."""
        if not self._runtime.started.is_set() or self._journal.room is JournalRoom.AWAY:
            return None
        return {node.node_id for node in self._runtime.cluster.view.nodes()}

    async def until_serving(self) -> None:
        """Returns once some pipeline takes requests."""
        await self._runtime.serving.wait()

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._generations.tick()
            except ShuntError as error:
                _log.error("nothing was forgotten", extra={"why": error.message})
            self._show()
            await asyncio.sleep(HOUSEKEEPING_S)

    def _show(self) -> None:
        cluster, market = self._runtime.cluster, self._runtime.market
        view, nodes = cluster.view, cluster.view.nodes()
        metrics.show_cluster(nodes, view.pipelines())
        deployed = (goal.model.model_id for goal in cluster.goals.deployed)
        metrics.show_down(view.down_s(time.monotonic()), deployed)
        metrics.show_faults(view.faults())
        metrics.show_money(market, cluster.settings.budget_per_hour)
        metrics.TARGETS.show(nodes, self._offer_of)
        metrics.OPEN.set(len(self._generations.population().open))

    async def _mind_the_journal(self) -> None:
        before = JournalRoom.ENOUGH
        while True:
            self._journal.tend()
            room = self._journal.room
            if room is not before:
                self.events.add("journal_room", attributes={"left": room.value})
                await self._server.set_ready(room not in (JournalRoom.NONE, JournalRoom.AWAY))
            metrics.show_room(room)
            before = room
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _end_nodes(self) -> None:
        if self._settings.end_nodes_on_stop:
            await self._runtime.end_nodes()


def _budget(saved: Mapping[str, str], named: float) -> float:
    """Of the settings, or what an operator said since."""
    noted = saved.get(NOTE)
    return named if noted is None else Budget.from_json(noted).begun_with(named)


def _draw_id() -> str:
    return uuid.uuid4().hex
