"""Nodes, pipelines, formations and their replacement. Events in, actions out.

A drain: the replacement (an idle node, or a new one) loads the interrupted node's layers while the
old formation serves on. When it has, routes change, the old formation is drained (every generation
sealed behind its last step), dissolved, and the survivors form the next formation with the new
node. A survivor is a member of one formation at a time: it has one KV cache and one batch of steps,
and giving it two would halve both for the sake of some tens of milliseconds. Meanwhile readers
resume on the other pipelines; when there is none their Resume waits for the new formation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from services.common.errors import NotFound, StaleEpoch
from services.common.exchange import Route
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts
from services.controller.core.cluster.actions import (
    Action,
    Beat,
    DissolveFormation,
    FaultView,
    Loaded,
    LogEvent,
    NodeView,
    PersistCluster,
    PipelineView,
    RoutesChanged,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.changes import adopt
from services.controller.core.cluster.difference import Difference, difference
from services.controller.core.cluster.faults import faults_of, unusable
from services.controller.core.cluster.lacks import is_busy, lacks_of
from services.controller.core.cluster.liveness import judge, overlook
from services.controller.core.cluster.losses import dissolve, follow, forgive, lose
from services.controller.core.cluster.market import NO_CAPACITY, OVER_BUDGET
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.notices import hand_over, lapse, must_part, notice
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.recovery import first_actions
from services.controller.core.cluster.replanning import Lack
from services.controller.core.cluster.routes import handing_over, heads_of, routes_of
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.snapshot import from_json, to_json
from services.controller.core.cluster.state import State
from services.controller.core.cluster.steps import steps
from services.controller.core.ledger.outcomes import ServingHead

_STRANGE_BEATS = 2
"""One beat may have been on its way while the formation changed."""

_FORMS_ON_TRUST = 2
"""Attempts to form with what members said that they hold."""


class Cluster:
    """The cluster as the controller knows it."""

    def __init__(
        self,
        settings: ClusterSettings,
        draw_id: Callable[[], str],
        now_s: float,
        now_unix_s: float,
    ) -> None:
        """`draw_id` gives unique strings: ids of formations. `now_unix_s` is the wall time at
        `now_s`, which is on the clock that every other time is on."""
        self.settings = settings
        self._draw_id = draw_id
        self._state = State(settings.basis)
        self.unix_offset_s = now_unix_s - now_s
        """Wall time less the clock that all times are on."""
        self._past: set[str] = set()
        """Incarnations that were replaced by a newer one of the same node."""
        self._grace_until_s = self._now_s = self._ticked_s = now_s
        self._route_version = 0
        self._routes: tuple[Route, ...] = ()
        self._handing_over: tuple[str, ...] = ()
        self._hopeless = ""
        self._asleep: tuple[ModelRef, ...] = ()
        self._snapshot = ""

    @classmethod
    def recover(
        cls,
        settings: ClusterSettings,
        draw_id: Callable[[], str],
        snapshot: str,
        now_s: float,
        now_unix_s: float,
    ) -> Cluster:
        """The cluster as its last snapshot had it; every node is given `restart_grace_s`."""
        cluster = cls(settings, draw_id, now_s, now_unix_s)
        cluster._state = from_json(snapshot, now_s, cluster.unix_offset_s)
        cluster._grace_until_s = now_s + settings.restart_grace_s
        return cluster

    def start(self, now_s: float) -> list[Action]:
        """First actions after __init__ or recover."""
        return self._advance(first_actions(self._state, self.settings, now_s), now_s)

    # Nodes

    def register(self, facts: NodeFacts, now_s: float) -> list[Action]:
        """A node is there; the same incarnation may say so again. Raises StaleEpoch for an older
        incarnation of a node that has a newer one."""
        if facts.incarnation in self._past:
            raise StaleEpoch("a newer process has this node's name", field="incarnation")
        actions: list[Action] = []
        node = self._state.nodes.get(facts.node_id)
        if node is not None and node.incarnation not in ("", facts.incarnation):
            if not node.lost:
                actions += self._lose(node, "replaced", now_s)
            self._past.add(node.incarnation)
            node = None
        if node is None:
            node = self._state.nodes[facts.node_id] = Node(facts.node_id, facts.shape, now_s)
        new, returns = node.register(facts, now_s)
        if returns:
            actions.append(LogEvent("node_returned", node.node_id))
        if new:
            actions.append(LogEvent("node_registered", node.node_id))
        return self._advance(actions, now_s)

    def heartbeat(self, beat: Beat, now_s: float) -> list[Action]:
        """Raises NotFound when the node must register (again)."""
        node = self._state.nodes.get(beat.node_id)
        facts = node.facts if node is not None and node.present else None
        if node is None or facts is None or facts.incarnation != beat.incarnation:
            raise NotFound("register first", field="node_id")
        node.hear(beat, now_s)
        actions: list[Action] = []
        if beat.departs_in_s is not None:
            actions += notice(node, now_s + beat.departs_in_s, now_s, departs=True)
        actions += self._formation_beat(node, facts, beat, now_s)
        self._now_s = now_s
        return self._advance(actions, now_s) if actions else []  # a beat alone lacks nothing new

    def _formation_beat(
        self, node: Node, facts: NodeFacts, beat: Beat, now_s: float
    ) -> list[Action]:
        """A member that is not in its formation, or misses another one, ends it; who is in a
        formation that is no more is told so."""
        pipeline = self._state.pipeline_of(node)
        formation = pipeline.formation if pipeline is not None else None
        if pipeline is None or formation is None:
            if node.seems(bool(beat.formation_id)) < _STRANGE_BEATS:
                return []
            node.seems(False)
            member = Member(node.node_id, facts.incarnation, facts.address, LayerRange(0, 0))
            return [DissolveFormation(beat.formation_id, (member,))]
        if formation.forming:
            return []
        strange = node.seems(beat.formation_id != formation.formation_id) >= _STRANGE_BEATS
        members = {member.node_id for member in formation.members}
        if strange or not members.isdisjoint(beat.lost_node_ids):
            return self._dissolve(pipeline, "member_left", now_s)
        return []

    def node_gone(self, node_id: str, incarnation: str, cause: str, now_s: float) -> list[Action]:
        """The edge knows that the process is dead (its exit was seen, or its connection was
        refused); `incarnation` may be empty for a launched process that never registered."""
        node = self._state.nodes.get(node_id)
        if node is None or node.lost:
            return []
        if node.incarnation != incarnation:
            return []
        return self._advance(self._lose(node, cause, now_s), now_s)

    def launch_failed(self, node_id: str, reason: str, now_s: float) -> list[Action]:
        """The provider could not start it; another one is, after a pause."""
        node = self._state.nodes.get(node_id)
        if node is None or node.lost or node.facts is not None:
            return []
        lost = lose(self._state, self.settings, node, reason, now_s, started=False, came=False)
        return self._advance(lost, now_s)

    def offers_changed(self, now_s: float) -> list[Action]:
        """There may be capacity, or money, where there was none: launches that were refused for
        want of it are tried again at once."""
        seats = (seat.launches for _, seat in self._state.all_seats())
        for backoff in (self._state.first_launches, *seats):
            if backoff.cause in (NO_CAPACITY, OVER_BUDGET):
                backoff.try_now()
        return self._advance([], now_s)

    def _lose(self, node: Node, cause: str, now_s: float) -> list[Action]:
        return lose(self._state, self.settings, node, cause, now_s)

    # Plans, loads, formations

    def plan_ready(self, plan: Plan, now_s: float) -> list[Action]:
        """A plan, from placement or from an operator. It is adopted at once, however far the one
        before was carried out; one that is not newer changes nothing."""
        state = self._state
        state.asking.answered()
        if plan.number <= state.last_number:
            return []
        state.first_launches.succeed()
        adopted_unix_s = round(now_s + self.unix_offset_s, 3)
        plan = replace(plan, why=replace(plan.why, adopted_unix_s=adopted_unix_s))
        return self._advance(adopt(state, self.settings, plan, now_s), now_s)

    def difference(self, plan: Plan, now_s: float) -> Difference:
        """What a newer plan would change, were it adopted now; nothing is changed by asking."""
        return difference(self._state, self.settings, plan, now_s)

    def plan_failed(self, reason: str, permanent: bool, now_s: float) -> list[Action]:
        """Asked again after a pause; when the failure is permanent, once the nodes are others."""
        self._state.asking.failed(self.settings, reason, permanent, now_s)
        return [LogEvent("plan_failed", attributes={"reason": reason})]

    def load_done(
        self, node_id: str, incarnation: str, layers: LayerRange, loaded: Loaded, now_s: float
    ) -> list[Action]:
        """The node holds these layers, or its store does. Who is told so once asks again as soon as
        the node serves no more; told so again, it has failed."""
        node = self._loading(node_id, incarnation, layers)
        if node is None:
            return []
        if loaded.held:
            kind = "stage_loaded"
            node.loaded(loaded)
        elif node.fetched != node.loading:
            kind = "stage_fetched"
            node.fetch()
        else:
            return self._refuse(node, "another stage takes up the node's memory", False, now_s)
        attributes = {"layers": f"{layers.start}-{layers.end}"}
        return self._advance([LogEvent(kind, node_id, "", attributes)], now_s)

    def load_failed(
        self,
        node_id: str,
        incarnation: str,
        layers: LayerRange,
        reason: str,
        permanent: bool,
        now_s: float,
    ) -> list[Action]:
        """Tried again after a pause, in the end at another node; a failure that is permanent only
        where there is another one anyway."""
        node = self._loading(node_id, incarnation, layers)
        return [] if node is None else self._refuse(node, reason, permanent, now_s)

    def _works(self, node: Node) -> bool:
        """It holds a stage, or serves with one."""
        return node.held is not None or self._state.serves(node)

    def _refuse(self, node: Node, reason: str, permanent: bool, now_s: float) -> list[Action]:
        node.refuse(self.settings, reason, permanent, now_s)
        attributes = {"reason": reason, "permanent": str(permanent).lower()}
        return [LogEvent("load_failed", node.node_id, "", attributes)]

    def _loading(self, node_id: str, incarnation: str, layers: LayerRange) -> Node | None:
        """The node that was asked for these layers last, if it is that process still."""
        node = self._state.nodes.get(node_id)
        if node is None or node.lost or node.loading is None:
            return None
        asked = (node.incarnation, node.loading.layers) == (incarnation, layers)
        return node if asked else None

    def formed(self, formation_id: str, now_s: float) -> list[Action]:
        """All members stand."""
        pipeline = self._state.pipeline(formation_id)
        formation = pipeline.formation if pipeline is not None else None
        if pipeline is None or formation is None or not formation.forming:
            return []
        down_s = pipeline.stand(now_s)
        for member in formation.members:
            self._state.nodes[member.node_id].serve(now_s, leads=member is formation.head)
        attributes = {"formation": formation_id, "down_s": f"{down_s:.3f}"}
        event = LogEvent("pipeline_ready", "", pipeline.pipeline_id, attributes)
        return self._advance([event], now_s)

    def form_failed(self, formation_id: str, reason: str, now_s: float) -> list[Action]:
        """Some member does not; dissolved, and formed anew after a pause. Behind the second time in
        a row its members are asked to load again: one may hold something else than it said."""
        pipeline = self._state.pipeline(formation_id)
        formation = pipeline.formation if pipeline is not None else None
        if pipeline is None or formation is None or not formation.forming:
            return []
        actions = self._dissolve(pipeline, f"form_failed: {reason}", now_s)
        if pipeline.forms.failures >= _FORMS_ON_TRUST:
            for member in self._state.living(formation):
                self._state.nodes[member.node_id].forget_stage()
        return self._advance(actions, now_s)

    def _dissolve(self, pipeline: Pipeline, cause: str, now_s: float) -> list[Action]:
        return dissolve(self._state, self.settings, pipeline, cause, now_s)

    # Interruptions

    def interrupt(self, node_id: str, notice_s: float, kill: bool, now_s: float) -> list[Action]:
        """A notice, or an order to kill. Raises NotFound. The same notice twice changes nothing, no
        more than a later one."""
        node = self._state.nodes.get(node_id)
        if node is None or node.lost:
            raise NotFound("no such node", field="node_id")
        if kill:
            return [LogEvent("kill_ordered", node_id), TerminateNode(node_id, kill=True)]
        return self._advance(notice(node, now_s + notice_s, now_s), now_s)

    def drained(self, formation_id: str, sealed: int, now_s: float) -> list[Action]:
        """Every generation of the formation is sealed."""
        state, pipeline = self._state, self._state.pipeline(formation_id)
        if pipeline is None or not pipeline.drains:
            return []
        formation = state.end_formation(pipeline, self.settings, "drained", now_s)
        actions: list[Action] = [
            LogEvent("handover_finished", "", pipeline.pipeline_id, {"sealed": str(sealed)}),
            DissolveFormation(formation_id, state.living(formation)),
            *follow(state, pipeline),
        ]
        return self._advance(actions, now_s)

    def drain_failed(self, formation_id: str, reason: str, now_s: float) -> list[Action]:
        """The head did not answer; the formation is dissolved all the same."""
        event = LogEvent("drain_failed", "", self.pipeline_of(formation_id), {"reason": reason})
        return [event, *self.drained(formation_id, 0, now_s)]

    # Time

    def tick(self, now_s: float) -> list[Action]:
        """Silence, timeouts and retries; call it every 0.1 s or so. Behind a gap between two calls
        nobody counts as dead, as after a restart: who was stopped has heard nobody."""
        settings = self.settings
        actions: list[Action] = []
        overlook(self._state, now_s - self._ticked_s, now_s)
        if now_s - self._ticked_s >= settings.doubt_s:
            self._grace_until_s = max(self._grace_until_s, now_s + settings.restart_grace_s)
        self._ticked_s = now_s
        awake = now_s >= self._grace_until_s
        for node in list(self._state.nodes.values()):
            if node.lost:
                if now_s - node.since_s >= settings.lost_kept_s:
                    # one that was lost by its silence may live on
                    actions.append(TerminateNode(node.node_id, kill=True))
                    self._state.forget(node)
            elif node.facts is None:
                if now_s - node.since_s >= settings.launch_timeout_s:
                    actions += lose(
                        self._state, settings, node, "launch timed out", now_s, came=False
                    )
                    actions += [
                        ShunOffer(node.node_id),
                        TerminateNode(node.node_id, kill=True),
                    ]
            elif awake and now_s - node.heard_s >= settings.silence_s(self._works(node)):
                actions += self._lose(node, "silence", now_s)
            elif node.deadline_s is not None and now_s >= node.deadline_s and not node.departs:
                actions += lapse(self._state, node)
        actions += judge(self._state, settings, awake, now_s)
        for pipeline in self._state.pipelines.values():
            if pipeline.is_ready and must_part(self._state, settings, pipeline, now_s):
                actions += hand_over(self._state, pipeline, now_s)
        for _, seat in self._state.all_seats():
            forgive(self._state, settings, seat, now_s)
        return self._advance(actions, now_s)

    # What others see

    def routes(self) -> tuple[int, tuple[Route, ...]]:
        """Version and pipelines that take new requests."""
        return self._route_version, self._routes

    def handing_over(self) -> tuple[str, ...]:
        """Formations that serve what they have and take nothing new; of the same version."""
        return self._handing_over

    def heads(self) -> tuple[ServingHead, ...]:
        """Every living formation's head, for the ledger."""
        return heads_of(self._state, self.settings, self._now_s)

    def pipeline_of(self, formation_id: str) -> str:
        """The pipeline a formation serves; '' when it is not known."""
        pipeline = self._state.pipeline(formation_id)
        return pipeline.pipeline_id if pipeline is not None else ""

    def deadlines_s(self) -> dict[str, float]:
        """Nodes that were given notice, and when they will be taken away."""
        nodes = self._state.nodes.values()
        return {n.node_id: n.deadline_s for n in nodes if n.deadline_s is not None}

    @property
    def plan(self) -> Plan | None:
        """What is carried out."""
        return self._state.plan

    @property
    def busy(self) -> bool:
        """A change is being carried out, and goes on by itself."""
        return is_busy(self._state, self.settings)

    def lacks(self) -> frozenset[Lack]:
        """Seats of the plan that nobody is to be had for."""
        return lacks_of(self._state, self.settings)

    def staying(self) -> list[Node]:
        """Nodes that may be given a place, or have one: they are there or start."""
        return self._state.staying()

    def guests(self) -> frozenset[str]:
        """Nodes that came by themselves and have no place."""
        seated = self._state.seated()
        return frozenset(
            node.node_id
            for node in self._state.nodes.values()
            if node.usable and not node.launched and node.node_id not in seated
        )

    def asleep(self) -> tuple[ModelRef, ...]:
        """Models that the plan gives no pipeline."""
        plan = self._state.plan
        deployments = () if plan is None else plan.deployments
        return tuple(one.model for one in deployments if not one.pipelines)

    def running(self) -> tuple[PlannedPipeline, ...]:
        """The plan's pipelines on the nodes that sit in them now, or come in place of those that
        will be taken away; vacant ones left out."""
        return tuple(
            PlannedPipeline(
                pipeline.pipeline_id,
                tuple(
                    replace(
                        seat.planned, node_id=seat.successor_id or seat.node_id, shape=seat.shape
                    )
                    for seat in pipeline.seats
                ),
                pipeline.weight_tokens_per_s,
            )
            for pipeline in self._state.wanted()
            if all(seat.node_id for seat in pipeline.seats)
        )

    @property
    def next_plan_number(self) -> int:
        """Of a plan that is to take the place of every one there was."""
        return self._state.last_number + 1

    def addresses(self) -> set[str]:
        """Of the nodes that are known."""
        return {n.facts.address for n in self._state.nodes.values() if n.facts is not None}

    def nodes_view(self) -> tuple[NodeView, ...]:
        """For the status."""
        return self._state.node_views()

    def faults(self) -> tuple[FaultView, ...]:
        """What keeps failing, the worst first."""
        return faults_of(self._state)

    def unusable(self) -> str:
        """Why no pipeline will ever take requests as things are; empty when one does or may."""
        return unusable(self._state, self.faults())

    def pipelines_view(self) -> tuple[PipelineView, ...]:
        """For the status."""
        return self._state.pipeline_views()

    def _advance(self, actions: list[Action], now_s: float) -> list[Action]:
        self._now_s = now_s
        actions = [*actions, *steps(self._state, self.settings, self._draw_id, now_s)]
        routes, leaving = routes_of(self._state, self.settings), handing_over(self._state)
        hopeless, asleep = self.unusable(), self.asleep()
        told = (self._routes, self._handing_over, self._hopeless, self._asleep)
        if (routes, leaving, hopeless, asleep) != told:
            self._routes, self._handing_over, self._hopeless = routes, leaving, hopeless
            self._asleep = asleep
            self._route_version += 1
            actions.append(RoutesChanged(self._route_version))
        snapshot = to_json(self._state, self.unix_offset_s) if actions else self._snapshot
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            actions.insert(0, PersistCluster(snapshot))
        return actions
