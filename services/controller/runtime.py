"""Carries out what the cluster core asks for, and tells it what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import (
    NotFound,
    ShuntError,
)
from services.common.nodes import NodeFacts
from services.controller import metrics
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    CopyAhead,
    DepartFormation,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    LogEvent,
    NodeState,
    PersistCluster,
    RoutesChanged,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.applying import operators_plan
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.views import NodeView
from services.controller.core.ledger.outcomes import ServingHead
from services.controller.core.ledger.records import HeadBound
from services.controller.departures import Departures, Journaled
from services.controller.diffs import PlanDiff, plan_diff
from services.controller.engines import Engines
from services.controller.event_log import EventLog
from services.controller.fleet import Fleet
from services.controller.formations import Formations
from services.controller.hand_ons import HandOns
from services.controller.journal.journal import Journal, LoggedEvent, Saved
from services.controller.kv_sources import KvSources
from services.controller.planning import Planning
from services.controller.providers.provider import Provider
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

_Turn = asyncio.Future[None]
_SHORTEST_SLEEP_S = 0.001
CONFIRM_PAUSE_S = 0.2
_AT_ONCE = 50
"""Actions that are begun before others have a turn of the loop."""
_LOOKS_S = (0.0, 0.1, 0.4)
"""Pauses before the looks at a suspect: one that ends may listen a moment longer than it speaks."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Timings in seconds."""

    terminate_grace_s: float = 2.0
    shun_offer_s: float = 60.0
    """An offer that did not keep its word is left alone for so long."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Actions that were asked for together."""

    actions: Sequence[Action]
    plan: int
    """Number of the plan that was carried out then; 0 while there was none."""
    turn: _Turn | None
    """Resolves when they are begun."""


class ClusterRuntime:
    """The cluster core at work.

    Actions are carried out in the order they were asked for, behind the attempt to make the
    cluster's notes and the nodes' handles durable. What the journal does not take is tried again
    whenever the core wakes, and holds nothing up: nodes must be replaced on a full disk too. Only
    where another controller might lead by now, it is waited for. Calls to others run beside each
    other.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: RuntimeSettings,
        *,
        provider: Provider,
        engines: Engines,
        kv: KvSources,
        planning: Planning,
        journal: Journal,
        events: EventLog,
        journaled: Journaled,
        promise_onward: Callable[[str], ServingHead | None],
        heads_changed: Signal,
        clock: Callable[[], float],
    ) -> None:
        self.cluster = cluster
        self.routes_changed = Signal()
        self.changed = Signal()
        """Something was done, or heard of the market."""
        self.serving = asyncio.Event()
        """Some pipeline takes requests, or did."""
        self.started = asyncio.Event()
        """The nodes launched before a restart were looked for; register and heartbeat work."""
        self.closing = False
        self._settings = settings
        self._engines = engines
        self._kv = kv
        self._planning = planning
        self._journal = journal
        self._events = events
        self._heads_changed = heads_changed
        self._clock = clock
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue()
        self._tasks: asyncio.TaskGroup
        self._carrying_out: asyncio.Task[None] | None = None
        self._of_node: dict[str, set[asyncio.Task[None]]] = {}
        self._stirred = Signal()
        """Something happened to the core."""
        self._turn: _Turn | None = None
        """Resolves when what the core asks for behind it is begun."""
        self._probing: set[str] = set()
        self._unsaved: dict[str, str | None] = {}
        """Notes on their way to the journal, the newest of each key."""
        self._fleet = Fleet(
            cluster,
            provider,
            terminate_grace_s=settings.terminate_grace_s,
            shun_offer_s=settings.shun_offer_s,
            submit=self._submit,
            stir=self._stir,
            gone=self._gone,
            note=self._note,
            clock=clock,
        )
        self.market = self._fleet.market
        departures = Departures(
            cluster,
            engines,
            journaled,
            events,
            kv=kv,
            block_positions=cluster.settings.block_positions,
            clock=clock,
        )
        self._hand_ons = HandOns(cluster, engines, promise_onward, begin=self._begin)
        self._formations = Formations(
            cluster, engines, departures, kv, begin=self._begin, stir=self._stir, clock=clock
        )

    def generation_began(self, bound: HeadBound) -> None:
        """A head has accepted it."""
        self._hand_ons.began(bound)

    async def run(self, saved: Mapping[str, str]) -> None:
        """Works until cancelled; `saved` is what the journal held at the start."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._fleet.open()
                self.cluster.start(self._clock())
                await self._fleet.adopt(saved)
                self._carrying_out = self._tasks.create_task(self._carry_out_all())
                self._fleet.give_notices_again()
                self._tasks.create_task(self._fleet.watch())
                self.started.set()
                while True:
                    self._advance()
                    await self._until_due()
        finally:
            await self._engines.close()

    async def register(self, facts: NodeFacts) -> None:
        """A node says what it is. Raises StaleEpoch, PermissionDenied."""
        handle = await self._fleet.recognise(facts)
        facts = self._fleet.believed(facts, handle)
        self.cluster.register(facts, self._clock())
        if differs := self._fleet.found(facts, handle):
            self._submit(differs)
        await self._stir()

    def heartbeat(self, beat: Beat) -> None:
        """A node lives. Raises NotFound when it must register."""
        now_s = self._clock()
        self.cluster.heartbeat(beat, now_s)
        if self.cluster.wakes_at_s() <= now_s:
            self._stir()
        for node_id in beat.lost_node_ids:
            self.suspect(node_id)

    def suspect(self, node_id: str) -> None:
        """Somebody lost a node: looks whether its process still listens."""
        node = self.cluster.view.node(node_id)
        if self.closing or node is None or not node.address:
            return
        if node_id not in self._probing:
            self._probing.add(node_id)
            self._tasks.create_task(self._probe(node))

    async def interrupt(self, node_id: str, notice_s: float, kill: bool) -> LoggedEvent:
        """A node will be taken away, or is to be killed now: the event that says so. Raises
        NotFound, FailedPrecondition, Unavailable; see `Fleet.interrupt`."""
        await self._fleet.interrupt(node_id, notice_s, kill)
        await self.settle()  # the same notice, given before, may wait to be logged yet
        await self._journal.settled()
        kind = "kill_ordered" if kill else "interruption_noticed"
        event = self._events.newest(kind, node_id)
        if event is None:
            raise NotFound("the notice is too old to be known", field="node_id")
        return event

    async def apply_plan(self, plan_json: str, source: str) -> int:
        """Adopts an operator's plan from this file; returns its number. Raises InvalidArgument, and
        FailedPrecondition for what the strategy does not allow."""
        number, known = self.cluster.view.next_plan_number, self.cluster.view.shapes()
        plan = operators_plan(plan_json, number, self.cluster.goals, known, source)
        self.cluster.check_plan(plan)
        self.cluster.plan_ready(plan, self._clock())
        await self._stir()
        return number

    async def diff_plan(self, plan_json: str) -> PlanDiff:
        """What applying it would change. Raises InvalidArgument."""
        return await plan_diff(
            plan_json,
            cluster=self.cluster,
            market=self.market,
            placement=self._planning,
            now_s=self._clock(),
        )

    def carry_out(self, actions: Sequence[Action]) -> None:
        """What is to be done, and what the cluster core asks for since it was told something."""
        if actions:
            self._submit(actions)
        self._stir()

    async def aim_at(self, goals: Goals, plan: Plan | None) -> None:
        """Other models are to be served, by this plan."""
        self.cluster.aim_at(goals, plan, self._clock())
        await self._stir()

    def close(self) -> None:
        """Ends everyone who watches routes; nothing new is begun."""
        self.closing = True
        self.routes_changed.fire()

    async def settle(self) -> None:
        """Waits until what comes of all that happened so far is begun and its notes durable, or
        until nothing is carried out any more."""
        if self._carrying_out is not None:
            begun = asyncio.shield(self._stir())
            await asyncio.wait((begun, self._carrying_out), return_when=asyncio.FIRST_COMPLETED)

    async def end_nodes(self) -> None:
        """Ends every node the provider launched."""
        await self._fleet.end()

    def _gone(self, node_id: str, reason: str, incarnation: str | None = None) -> None:
        node = self.cluster.view.node(node_id)
        if node is not None:
            if incarnation not in (None, node.incarnation):
                return  # a newer process has its name
            metrics.NODES_LOST.inc(node.state is not NodeState.LOST)
            self.cluster.node_gone(node_id, node.incarnation, reason, self._clock())
            self._stir()
            self._tasks.create_task(self._engines.forget(node.address))
        for task in self._of_node.pop(node_id, set()):
            task.cancel()
        self._fleet.forget(node_id)

    async def _probe(self, node: NodeView) -> None:
        try:
            for pause_s in _LOOKS_S:
                await asyncio.sleep(pause_s)
                if await self._engines.refuses(node.address):
                    self._gone(node.node_id, "connection refused", node.incarnation)
                    break
        finally:
            self._probing.discard(node.node_id)

    async def _until_due(self) -> None:
        """Until something happens, or the core has something to do by time alone."""
        left_s = max(_SHORTEST_SLEEP_S, self.cluster.wakes_at_s() - self._clock())
        while self._turn is None and left_s > 0:
            await self._stirred.wait(left_s)
            left_s = self.cluster.wakes_at_s() - self._clock()

    def _stir(self) -> _Turn:
        """Something happened to the core, which is asked once for all that happens in this turn of
        the loop; resolves when what it answers is begun."""
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
            self._stirred.fire()
        return self._turn

    def _advance(self) -> None:
        turn, self._turn = self._turn, None
        actions = self.cluster.advance(self._clock())
        if actions or turn is not None or (self._unsaved and self._queue.empty()):
            self._submit(actions, turn)

    def _submit(self, actions: Sequence[Action], turn: _Turn | None = None) -> None:
        """Has actions carried out."""
        plan = self.cluster.plan
        self._queue.put_nowait(_Asked(actions, 0 if plan is None else plan.number, turn))

    async def _carry_out_all(self) -> None:
        while True:
            together = [await self._queue.get()]
            while not self._queue.empty():  # what came while the disk was waited for is one write
                together.append(self._queue.get_nowait())
            for action in (action for asked in together for action in asked.actions):
                if isinstance(action, PersistCluster):
                    self._unsaved |= action.notes
            if self._unsaved:
                await self._persist()
            await self._until_confirmed()
            for asked in together:
                await self._begin_asked(asked)
            self._formations.look()
            for address in self._engines.addresses - self.cluster.view.addresses():
                self._tasks.create_task(self._engines.forget(address))
            self._heads_changed.fire()
            self.changed.fire()

    async def _begin_asked(self, asked: _Asked) -> None:
        self._events.plan = asked.plan
        for index, action in enumerate(asked.actions, 1):
            self._carry_out(action)
            if index % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if asked.turn is not None and not asked.turn.done():
            asked.turn.set_result(None)

    def _note(self, key: str, value: str | None) -> None:
        self._unsaved[key] = value

    async def _persist(self) -> None:
        notes, self._unsaved = self._unsaved, {}
        try:  # all in one: the notes are true of the cluster only as a whole
            await self._journal.write([Saved(*note) for note in notes.items()], fsync=True)
        except ShuntError as error:
            self._unsaved = notes | self._unsaved
            _log.error("notes not journaled", extra={"error": error.message})

    async def _until_confirmed(self) -> None:
        """Where others may lead, nothing is carried out before it is sure that nobody does."""
        told = False
        while True:
            try:
                return await self._journal.confirmed()
            except ShuntError as error:
                if not told:
                    _log.error("nothing is carried out", extra={"why": error.message})
                told = True
                await asyncio.sleep(CONFIRM_PAUSE_S)

    def _carry_out(self, action: Action) -> None:
        match action:
            case LogEvent(kind, node_id, pipeline_id, attributes):
                self._events.add(
                    kind, node_id=node_id, pipeline_id=pipeline_id, attributes=attributes
                )
            case RoutesChanged():
                if self.cluster.routes()[1]:
                    self.serving.set()
                self.routes_changed.fire()
            case PersistCluster():
                return
            case LaunchNode():
                self._begin(self._fleet.launch(action))
            case TerminateNode():
                self._begin(self._terminate(action))
            case ShunOffer(node_id):
                self._fleet.shun(node_id)
            case AskPlan():
                self._begin(self._plan(action))
            case (
                LoadStage()
                | FormPipeline()
                | DissolveFormation()
                | CopyAhead()
                | DepartFormation()
                | DrainFormation()
            ):
                self._formations.carry_out(action)

    def _begin(
        self, work: Coroutine[None, None, None], node_id: str | None = None
    ) -> asyncio.Task[None]:
        """Starts a call; one that belongs to a node ends when the node is gone."""
        task = self._tasks.create_task(work)
        if node_id is not None:
            tasks = self._of_node.setdefault(node_id, set())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    async def _terminate(self, action: TerminateNode) -> None:
        """Ends a node, but for one that is killed not while others are told that it keeps blocks
        for them."""
        if not action.kill:
            await self._kv.over(action.node_id)
        await self._fleet.terminate(action)

    async def _plan(self, action: AskPlan) -> None:
        try:
            plan = await self._planning.plan(action)
        except ShuntError as error:
            self.cluster.plan_failed(error.message, error.permanent, self._clock())
        else:
            self.cluster.plan_ready(plan, self._clock())
        self._stir()
