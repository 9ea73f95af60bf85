"""Carries out what the cluster core asks for, and tells it what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShuntError,
    Unavailable,
)
from services.common.nodes import Member, NodeFacts, StageSpec
from services.controller import metrics
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    Loaded,
    LoadStage,
    LogEvent,
    NodeState,
    NodeView,
    PersistCluster,
    RoutesChanged,
    TerminateNode,
)
from services.controller.core.cluster.applying import operators_plan
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    LaunchFailed,
    Market,
    NodeGone,
    NodeNotice,
    NoticeKind,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.core.cluster.notices import SAME_NOTICE_S
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.turns import Turns
from services.controller.engines import Engines
from services.controller.event_log import EventLog
from services.controller.journal.journal import Journal, LoggedEvent, Saved
from services.controller.planning import Planning
from services.controller.providers.provider import Provider
from services.controller.signal import Signal

_log = logging.getLogger(__name__)

HANDLE_PREFIX = "handle/"
SNAPSHOT = "cluster"
_NOTICED_WITHIN_S = 5.0
"""A provider that is to give notice does so."""
_OFFERS_NAMED = 8
"""Of those that changed, in one event."""
_LOOKS_S = (0.0, 0.1, 0.4)
"""Pauses before the looks at a suspect: one that ends may listen a moment longer than it speaks."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Timings in seconds."""

    tick_s: float = 0.1
    terminate_grace_s: float = 2.0


class ClusterRuntime:
    """The cluster core at work.

    Actions are carried out in the order they were asked for, behind the attempt to make the newest
    snapshot and the nodes' handles durable. What the journal does not take is tried again at every
    tick and holds nothing up: nodes must be replaced on a full disk too. Calls to others run beside
    each other.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: RuntimeSettings,
        *,
        provider: Provider,
        engines: Engines,
        planning: Planning,
        journal: Journal,
        events: EventLog,
        heads_changed: Signal,
        clock: Callable[[], float],
    ) -> None:
        self.cluster = cluster
        self.market = Market()
        self.routes_changed = Signal()
        self.serving = asyncio.Event()
        """Some pipeline takes requests, or did."""
        self.started = asyncio.Event()
        """The nodes launched before a restart were looked for; register and heartbeat work."""
        self.closing = False
        self._settings = settings
        self._provider = provider
        self._engines = engines
        self._planning = planning
        self._journal = journal
        self._events = events
        self._heads_changed = heads_changed
        self._clock = clock
        self._queue: asyncio.Queue[tuple[Sequence[Action], asyncio.Future[None]]] = asyncio.Queue()
        self._tasks: asyncio.TaskGroup
        self._carrying_out: asyncio.Task[None] | None = None
        self._of_node: dict[str, set[asyncio.Task[None]]] = {}
        self._turns = Turns()
        self._probing: set[str] = set()
        self._told = Signal()
        """The provider said something, and it was heard."""
        self._unsaved: dict[str, str | None] = {}
        """Notes on their way to the journal, the newest of each key."""

    async def run(self, saved: Mapping[str, str]) -> None:
        """Works until cancelled; `saved` is what the journal held at the start."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._submit(self._offers_are(self._provider.offers()))
                self._submit(self.cluster.start(self._clock()))
                await self._adopt(saved)
                self._carrying_out = self._tasks.create_task(self._carry_out_all())
                self._give_notices_again()
                self._tasks.create_task(self._watch_provider())
                self.started.set()
                while True:
                    self._submit(self.cluster.tick(self._clock()))
                    if self._unsaved and self._queue.empty():
                        self._queue.put_nowait(((), asyncio.get_running_loop().create_future()))
                    await asyncio.sleep(self._settings.tick_s)
        finally:
            await self._engines.close()

    async def register(self, facts: NodeFacts) -> None:
        """A node says what it is. Raises StaleEpoch, PermissionDenied."""
        handle = await self._provider.recognise(facts.node_id, facts.pid)
        actions = self.cluster.register(facts, self._clock())
        if handle:
            self._unsaved[HANDLE_PREFIX + facts.node_id] = handle
            self.market.found(facts.node_id, self._provider.offer_of(facts.node_id))
        await self._submit(actions)

    def heartbeat(self, beat: Beat) -> None:
        """A node lives. Raises NotFound when it must register."""
        self._submit(self.cluster.heartbeat(beat, self._clock()))
        for node_id in beat.lost_node_ids:
            self.suspect(node_id)

    def suspect(self, node_id: str) -> None:
        """Somebody lost a node: looks whether its process still listens."""
        node = self._node(node_id)
        if self.closing or node is None or not node.address:
            return
        if node_id not in self._probing:
            self._probing.add(node_id)
            self._tasks.create_task(self._probe(node))

    async def interrupt(self, node_id: str, notice_s: float, kill: bool) -> LoggedEvent:
        """A node will be taken away, or is to be killed now. A provider that can is told to do so,
        and gives the notice itself. Raises NotFound, and FailedPrecondition for a node that nobody
        here can kill."""
        holds = self._provider.holds(node_id)
        if kill and self._lives(node_id) and not holds:
            raise FailedPrecondition(
                "the node was not started by this controller's provider", field="node_id"
            )
        if self._provider.capabilities.gives_notice and holds and not kill:
            deadline_s = self._clock() + notice_s
            self._provider.give_notice(node_id, notice_s, NoticeKind.OPERATOR)
            await self._until_noticed(node_id, deadline_s)
        else:
            self._submit(self.cluster.interrupt(node_id, notice_s, kill, self._clock()))
        await self.settle()  # the same notice, given before, may wait to be logged yet
        await self._journal.settled()
        kind = "kill_ordered" if kill else "interruption_noticed"
        event = self._events.newest(kind, node_id)
        if event is None:
            raise NotFound("the notice is too old to be known", field="node_id")
        return event

    async def apply_plan(self, plan_json: str) -> int:
        """Adopts an operator's plan; returns its number. Raises InvalidArgument."""
        number = self.cluster.next_plan_number
        plan = operators_plan(plan_json, number, self.cluster.settings)
        await self._submit(self.cluster.plan_ready(plan, self._clock()))
        return number

    def adopt(self, plan: Plan) -> None:
        """A newer plan is what is carried out from now on."""
        self._submit(self.cluster.plan_ready(plan, self._clock()))

    async def _until_noticed(self, node_id: str, deadline_s: float) -> None:
        """Raises Unavailable when the provider gives no notice."""
        try:
            async with asyncio.timeout(_NOTICED_WITHIN_S):
                while self._lives(node_id) and not self._goes_by(node_id, deadline_s):
                    await self._told.wait()
        except TimeoutError:
            raise Unavailable("the provider has given no notice yet") from None

    def _goes_by(self, node_id: str, deadline_s: float) -> bool:
        known_s = self.cluster.deadlines_s().get(node_id)
        return known_s is not None and known_s <= deadline_s + SAME_NOTICE_S

    def _give_notices_again(self) -> None:
        """Notices that were given before a restart: who gave them has forgotten, too."""
        if not self._provider.capabilities.gives_notice:
            return
        for node_id, deadline_s in self.cluster.deadlines_s().items():
            if self._provider.holds(node_id):
                left_s = max(0.0, deadline_s - self._clock())
                self._provider.give_notice(node_id, left_s, NoticeKind.OPERATOR)

    def close(self) -> None:
        """Ends everyone who watches routes; nothing new is begun."""
        self.closing = True
        self.routes_changed.fire()

    async def settle(self) -> None:
        """Waits until what was asked for so far is begun and its snapshot durable, or until
        nothing is carried out any more."""
        if self._carrying_out is None:
            return
        done = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(((), done))
        await asyncio.wait((done, self._carrying_out), return_when=asyncio.FIRST_COMPLETED)

    async def end_nodes(self) -> None:
        """Ends every node the provider launched."""
        ends = [self._terminate(TerminateNode(node.node_id)) for node in self.cluster.nodes_view()]
        await asyncio.gather(*ends)

    def _node(self, node_id: str) -> NodeView | None:
        return next((n for n in self.cluster.nodes_view() if n.node_id == node_id), None)

    def _lives(self, node_id: str) -> bool:
        node = self._node(node_id)
        return node is not None and node.state is not NodeState.LOST

    async def _adopt(self, saved: Mapping[str, str]) -> None:
        """Finds the nodes launched before a restart; those that died meanwhile are gone."""
        for key, handle in saved.items():
            if not key.startswith(HANDLE_PREFIX):
                continue
            node_id = key.removeprefix(HANDLE_PREFIX)
            if await self._provider.adopt(node_id, handle):
                self.market.found(node_id, self._provider.offer_of(node_id))
            else:
                self._gone(node_id, "ended while the controller was away")

    async def _watch_provider(self) -> None:
        async for event in self._provider.events():
            self._hear(event)
            self._told.fire()

    def _hear(self, event: ProviderEvent) -> None:
        match event:
            case NodeGone(node_id, reason):
                self.market.ended(node_id)
                self._gone(node_id, reason)
                self._submit(self.cluster.offers_changed(self._clock()))
            case NodeNotice():
                self._noticed(event)
            case OffersChanged(offers):
                self._submit(self._offers_are(offers))
                self._submit(self.cluster.offers_changed(self._clock()))
            case LaunchFailed():
                self._launch_failed(event)

    def _noticed(self, notice: NodeNotice) -> None:
        now_s = self._clock()
        try:
            left_s = notice.left_s(now_s)
            self._submit(self.cluster.interrupt(notice.node_id, left_s, False, now_s))
        except (InvalidArgument, NotFound) as error:
            told = {"node_id": notice.node_id, "why": error.message}
            _log.warning("a notice counts for nothing", extra=told)

    def _offers_are(self, offers: Sequence[Offer]) -> list[Action]:
        """Takes the provider's offers; what is wrong with them is logged."""
        change = self.market.update(offers)
        actions: list[Action] = []
        if change.changed:
            named = ", ".join(change.changed[:_OFFERS_NAMED])
            attributes = {"offers": str(len(self.market.offers())), "changed": named}
            actions.append(LogEvent("offers_changed", attributes=attributes))
        if change.dropped:
            first = change.dropped[0]
            attributes = {
                "count": str(len(change.dropped)),
                "offer": first.offer_id,
                "field": first.field,
                "reason": first.reason,
            }
            actions.append(LogEvent("offers_dropped", attributes=attributes))
        return actions

    def _gone(self, node_id: str, reason: str, incarnation: str | None = None) -> None:
        node = self._node(node_id)
        if node is not None:
            if incarnation not in (None, node.incarnation):
                return  # a newer process has its name
            metrics.NODES_LOST.inc(node.state is not NodeState.LOST)
            self._submit(self.cluster.node_gone(node_id, node.incarnation, reason, self._clock()))
            self._tasks.create_task(self._engines.forget(node.address))
        for task in self._of_node.pop(node_id, set()):
            task.cancel()
        self._unsaved[HANDLE_PREFIX + node_id] = None

    async def _probe(self, node: NodeView) -> None:
        try:
            for pause_s in _LOOKS_S:
                await asyncio.sleep(pause_s)
                if await self._engines.refuses(node.address):
                    self._gone(node.node_id, "connection refused", node.incarnation)
                    break
        finally:
            self._probing.discard(node.node_id)

    def _submit(self, actions: Iterable[Action]) -> asyncio.Future[None]:
        """Has actions carried out; resolves when they are begun."""
        done = asyncio.get_running_loop().create_future()
        actions = tuple(actions)
        if actions:
            self._queue.put_nowait((actions, done))
        else:
            done.set_result(None)
        return done

    async def _carry_out_all(self) -> None:
        while True:
            actions, done = await self._queue.get()
            for action in actions:
                if isinstance(action, PersistCluster):
                    self._unsaved[SNAPSHOT] = action.snapshot
            if self._unsaved:
                await self._persist()
            for action in actions:
                self._carry_out(action)
            for address in self._engines.addresses - self.cluster.addresses():
                self._tasks.create_task(self._engines.forget(address))
            self._heads_changed.fire()
            if not done.done():
                done.set_result(None)

    async def _persist(self) -> None:
        notes, self._unsaved = self._unsaved, {}
        try:
            await self._journal.write([Saved(*note) for note in notes.items()], fsync=True)
        except ShuntError as error:
            self._unsaved = notes | self._unsaved
            _log.error("notes not journaled", extra={"error": error.message})

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
                self._begin(self._launch(action))
            case TerminateNode():
                self._begin(self._terminate(action))
            case AskPlan():
                self._begin(self._plan(action))
            case LoadStage():
                self._begin_all(self._turns.load(action))
            case FormPipeline():
                self._begin_all(self._turns.form(action))
            case DissolveFormation():
                self._turns.dissolve(action)
                for member in action.members:
                    self._begin(self._dissolve(action.formation_id, member))
            case DrainFormation():
                self._begin(self._drain(action), action.head.node_id)

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

    async def _launch(self, action: LaunchNode) -> None:
        node_id = action.node_id
        offer = self.market.named(action.offer_id, action.shape, self._clock())
        if offer is None:
            self._launch_failed(LaunchFailed(node_id, NO_CAPACITY))
            return
        self.market.launch(node_id, offer.offer_id)
        if handle := await self._provider.launch(node_id, offer):
            self._unsaved[HANDLE_PREFIX + node_id] = handle

    def _launch_failed(self, failed: LaunchFailed) -> None:
        now_s = self._clock()
        self.market.refused(failed.node_id, failed.retry_after_s, now_s)
        self._submit(self.cluster.launch_failed(failed.node_id, failed.reason, now_s))

    async def _terminate(self, action: TerminateNode) -> None:
        grace_s = 0.0 if action.kill else self._settings.terminate_grace_s
        try:
            await self._provider.terminate(action.node_id, grace_s)
        except ShuntError as error:
            _log.info("node not ended", extra={"node_id": action.node_id, "why": error.message})

    async def _plan(self, action: AskPlan) -> None:
        try:
            plan = await self._planning.plan(action)
        except ShuntError as error:
            self._submit(self.cluster.plan_failed(error.message, error.permanent, self._clock()))
        else:
            self._submit(self.cluster.plan_ready(plan, self._clock()))

    async def _load(self, action: LoadStage) -> None:
        loaded = metrics.LOADED.labels(action.node_id)
        try:
            stages = [StageSpec(action.layers, action.tp_degree)]
            (held,) = await self._engines.hold(
                action.address, action.model, stages, lambda done, total: loaded.set(done)
            )
        except ShuntError as error:
            self._submit(
                self.cluster.load_failed(
                    action.node_id,
                    action.incarnation,
                    action.layers,
                    error.message,
                    error.permanent,
                    self._clock(),
                )
            )
        else:
            self._submit(
                self.cluster.load_done(
                    action.node_id,
                    action.incarnation,
                    action.layers,
                    Loaded(held.kv_blocks, held.numerics_class, held.held),
                    self._clock(),
                )
            )
        finally:
            metrics.LOADED.remove(action.node_id)

    def _begin_all(self, actions: Iterable[FormPipeline | LoadStage]) -> None:
        for action in actions:
            if isinstance(action, LoadStage):
                self._begin(self._load(action), action.node_id)
            else:
                self._begin(self._form(action))

    async def _form(self, action: FormPipeline) -> None:
        if not self.cluster.pipeline_of(action.formation_id):
            return  # a member was lost meanwhile
        try:
            await self._engines.form(action)
        except ShuntError as error:
            self._submit(
                self.cluster.form_failed(action.formation_id, error.message, self._clock())
            )
        else:
            self._submit(self.cluster.formed(action.formation_id, self._clock()))

    async def _dissolve(self, formation_id: str, member: Member) -> None:
        try:
            await self._engines.dissolve(formation_id, member)
        except ShuntError as error:
            _log.info("member not told", extra={"node_id": member.node_id, "why": error.message})
        self._begin_all(self._turns.left(member.incarnation, formation_id))

    async def _drain(self, action: DrainFormation) -> None:
        try:
            sealed = await self._engines.drain(action.formation_id, action.head)
        except ShuntError as error:
            self._submit(
                self.cluster.drain_failed(action.formation_id, error.message, self._clock())
            )
        else:
            self._submit(self.cluster.drained(action.formation_id, sealed, self._clock()))
