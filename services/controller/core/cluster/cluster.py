"""Nodes, pipelines, formations and their replacement. Events in, actions out, once for all that
came together.

A drain: the replacement (an idle node, or a new one) loads the interrupted node's layers while the
old formation serves on. When it has, routes change, the old formation is drained (every generation
sealed behind its last step), dissolved, and the survivors form the next formation with the new
node. A survivor is a member of one formation at a time: it has one KV cache and one batch of steps,
and giving it two would halve both for the sake of some tens of milliseconds. Meanwhile readers
resume on the other pipelines; when there is none their Resume waits for the new formation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf

from services.common.errors import FailedPrecondition, NotFound, StaleEpoch
from services.common.exchange import Route
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import (
    Action,
    Beat,
    DissolveFormation,
    Loaded,
    LoadStage,
    LogEvent,
    PersistCluster,
    RoutesChanged,
    TerminateNode,
)
from services.controller.core.cluster.changes import adopt, must_load
from services.controller.core.cluster.deadlines import carry_out_due, next_due_s
from services.controller.core.cluster.faults import deployed_models
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.liveness import Liveness, Verdict
from services.controller.core.cluster.losses import dissolve, follow, lose
from services.controller.core.cluster.market import NO_CAPACITY, OVER_BUDGET, Market
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.notes import CLUSTER, Notes
from services.controller.core.cluster.notices import advise, hand_over, notice
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.recovery import first_actions
from services.controller.core.cluster.routes import not_for_new, routes_of
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State
from services.controller.core.cluster.steps import steps
from services.controller.core.cluster.verdicts import heed
from services.controller.core.cluster.views import View

_ROUNDS = 8
"""Steps may make others possible at once; more rounds than these are a defect, and none is waited
for."""

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
        goals: Goals | None = None,
    ) -> None:
        """`draw_id` gives unique strings: ids of formations. `now_unix_s` is the wall time at
        `now_s`, which is on the clock that every other time is on. `goals` are what the settings
        name alone where they are left out."""
        self.settings = settings
        self._draw_id = draw_id
        self.market = Market(settings.shun_offer_max_s)
        """What nodes are to be had, as the edge is told; it is told again after a restart."""
        liveness = Liveness(settings, now_s)
        self._state = State(settings.basis, goals or Goals.of(settings.first), liveness)
        self.unix_offset_s = now_unix_s - now_s
        """Wall time less the clock that all times are on."""
        self._past: set[str] = set()
        """Incarnations that were replaced by a newer one of the same node."""
        self._actions: list[Action] = []
        """What events ask for by themselves."""
        self._due_s = -inf
        """When something falls due, but for what liveness watches."""
        self._route_version = 0
        self._routes: tuple[Route, ...] = ()
        self._handing_over: tuple[str, ...] = ()
        self._deployed = deployed_models(self._state)
        self._notes = Notes(self.unix_offset_s)

    @classmethod
    def recover(
        cls,
        settings: ClusterSettings,
        draw_id: Callable[[], str],
        saved: Mapping[str, str],
        now_s: float,
        now_unix_s: float,
        goals: Goals | None = None,
    ) -> Cluster:
        """The cluster as the notes among what was saved have it; every node is given
        `restart_grace_s`. Without any it is a new one."""
        cluster = cls(settings, draw_id, now_s, now_unix_s, goals)
        if CLUSTER in saved:
            liveness = Liveness(settings, now_s, grace_s=settings.restart_grace_s)
            goals = cluster._state.goals
            cluster._state = cluster._notes.recover(saved, goals, liveness, now_s)
        return cluster

    # Events. What they bring about comes of the next `advance`, once for all of them.

    def start(self, now_s: float) -> None:
        """The first event after __init__ or recover."""
        self._happen(first_actions(self._state, self.settings, now_s))

    def register(self, facts: NodeFacts, now_s: float) -> None:
        """A node is there; the same incarnation may say so again. Raises StaleEpoch for an older
        incarnation of a node that has a newer one."""
        if facts.incarnation in self._past:
            raise StaleEpoch("a newer process has this node's name", field="incarnation")
        node = self._state.nodes.get(facts.node_id)
        if node is not None and node.incarnation not in ("", facts.incarnation):
            if not node.lost:
                self._happen(self._lose(node, "replaced", now_s))
            self._past.add(node.incarnation)
            node = self._state.put(node.replaced(facts.shape, now_s))
        elif node is None:
            node = self._state.put(Node(facts.node_id, facts.shape, now_s))
        new, returns = self._state.register(node, facts, now_s)
        self._happen([LogEvent("node_returned", node.node_id)] if returns else [])
        self._happen([LogEvent("node_registered", node.node_id)] if new else [])

    def heartbeat(self, beat: Beat, now_s: float, until_s: float | None = None) -> None:
        """A beat, or a run of them that are all like it, the last at `until_s`. Raises NotFound
        when the node must register (again). One that says nothing new is no event."""
        last_s = now_s if until_s is None else until_s
        self._heed(self._state.liveness.hear_until(beat, now_s, last_s), now_s)

    def tell_interval_s(self, incarnation: str) -> float:
        """How often the process is to beat; asked when it is told."""
        return self._state.liveness.tell_interval_s(incarnation)

    def _heed(self, verdicts: Iterable[Verdict], now_s: float) -> None:
        for verdict in verdicts:
            self._happen(heed(self._state, self.settings, verdict, now_s))

    def node_gone(self, node_id: str, incarnation: str, cause: str, now_s: float) -> None:
        """The edge knows that the process is dead (its exit was seen, or its connection was
        refused); `incarnation` may be empty for a launched process that never registered."""
        node = self._state.nodes.get(node_id)
        if node is not None and not node.lost and node.incarnation == incarnation:
            self._happen(self._lose(node, cause, now_s))

    def bought(self, node_id: str, offer_id: str) -> None:
        """What a node was launched from: the offer that was planned, or another one."""
        node = self._state.nodes.get(node_id)
        if node is not None:
            node.buy(offer_id)

    def launch_failed(self, node_id: str, reason: str, now_s: float) -> None:
        """The provider could not start it; another one is, after a pause."""
        node = self._state.nodes.get(node_id)
        if node is not None and not node.lost and node.facts is None:
            self._happen(
                lose(self._state, self.settings, node, reason, now_s, started=False, came=False)
            )

    def offers_changed(self, now_s: float) -> None:
        """There may be capacity, or money, where there was none: launches that were refused for
        want of it are tried again at once."""
        if self.settings.spares:
            self._happen()  # they are kept by what things cost
        seats = (seat.launches for _, seat in self._state.lacking_seats())
        for backoff in (self._state.first_launches, self._state.spare_launches, *seats):
            if backoff.cause in (NO_CAPACITY, OVER_BUDGET):
                backoff.try_now()
                self._happen()

    def spend(self, budget_per_hour: float, now_s: float) -> None:
        """Nodes are launched within another budget from now on."""
        before = self.settings.budget_per_hour
        if budget_per_hour == before:
            return
        self.settings = replace(self.settings, budget_per_hour=budget_per_hour)
        attributes = {"before": f"{before:g}", "now": f"{budget_per_hour:g}"}
        self._happen([LogEvent("budget_changed", attributes=attributes)])
        self.offers_changed(now_s)

    def _lose(self, node: Node, cause: str, now_s: float) -> list[Action]:
        return lose(self._state, self.settings, node, cause, now_s)

    # What is to be served

    @property
    def goals(self) -> Goals:
        """All models that are deployed."""
        return self._state.goals

    def aim_at(self, goals: Goals, plan: Plan | None, now_s: float) -> None:
        """Other models are to be served, by this plan; without one it is asked for, and what runs
        goes on until it is there."""
        state = self._state
        state.aim_at(goals)
        names = ", ".join(goal.model.model_id for goal in goals.deployed)
        actions: list[Action] = [LogEvent("deployments_changed", "", "", {"models": names})]
        state.asking.plans.hope()
        if plan is not None:
            actions += self._adopt(plan, now_s)
        self._happen(actions)

    # Plans, loads, formations

    def plan_ready(self, plan: Plan, now_s: float) -> None:
        """A plan, from placement or from an operator. It is adopted at once, however far the one
        before was carried out; one that is not newer changes nothing."""
        state = self._state
        state.asking.answered()
        if plan.number <= state.last_number:
            return
        if self._moved_by(plan):
            self._happen([LogEvent("plan_refused", attributes={"plan": str(plan.number)})])
        elif plan.models <= state.goals.models:
            state.first_launches.succeed()
            self._happen(self._adopt(plan, now_s))
        else:  # a model of it was undeployed meanwhile
            self._happen([LogEvent("plan_outdated", attributes={"plan": str(plan.number)})])

    def check_plan(self, plan: Plan) -> None:
        """Raises FailedPrecondition for a plan that moves weights where these are to stay."""
        moved = self._moved_by(plan)
        if moved:
            message = f"the strategy {self.settings.strategy.name} leaves weights where they are"
            raise FailedPrecondition(f"{message}: {', '.join(moved)} would load", field="stages")

    def _moved_by(self, plan: Plan) -> list[str]:
        return must_load(self._state, plan) if self.settings.strategy.weights_stay else []

    def _adopt(self, plan: Plan, now_s: float) -> list[Action]:
        adopted_unix_s = round(now_s + self.unix_offset_s, 3)
        plan = replace(plan, why=replace(plan.why, adopted_unix_s=adopted_unix_s))
        return adopt(self._state, self.settings, plan, now_s)

    def plan_failed(self, reason: str, permanent: bool, now_s: float) -> None:
        """Asked again after a pause; when the failure is permanent, once the nodes are others."""
        self._state.asking.failed(self.settings, reason, permanent, now_s)
        self._happen([LogEvent("plan_failed", attributes={"reason": reason})])

    def load_done(self, asked: LoadStage, loaded: Loaded, now_s: float) -> None:
        """The node holds this stage, or its store does. Who is told so once asks again as soon as
        the node serves no more; told so again, it has failed."""
        node = self._loading(asked)
        if node is None:
            return
        if not loaded.held and node.fetched == node.loading:
            self._refuse(node, "another stage takes up the node's memory", False, now_s)
            return
        if loaded.held or node.asked:
            self._state.loaded(node, loaded)
        else:
            node.fetch()
        kept = "stage_kept" if node.keeps else "stage_loaded"
        kind = kept if loaded.held else "stage_fetched"
        attributes = {"layers": f"{asked.layers.start}-{asked.layers.end}"}
        self._happen([LogEvent(kind, node.node_id, "", attributes)])

    def load_failed(self, asked: LoadStage, reason: str, permanent: bool, now_s: float) -> None:
        """Tried again after a pause, in the end at another node; a failure that is permanent only
        where there is another one anyway."""
        node = self._loading(asked)
        if node is not None:
            self._refuse(node, reason, permanent, now_s)

    def _refuse(self, node: Node, reason: str, permanent: bool, now_s: float) -> None:
        node.refuse(self.settings, reason, permanent, now_s)
        attributes = {"reason": reason, "permanent": str(permanent).lower()}
        self._happen([LogEvent("load_failed", node.node_id, "", attributes)])

    def _loading(self, asked: LoadStage) -> Node | None:
        """The node that was asked for this stage last, if it is that process still."""
        node = self._state.nodes.get(asked.node_id)
        if node is None or node.lost or node.incarnation != asked.incarnation:
            return None
        stage = HeldStage(asked.model, asked.layers, asked.tp_degree)
        return node if node.loading == stage else None

    def formed(self, formation_id: str, now_s: float, kv_block_bytes: int = 0) -> None:
        """All members stand. A full KV block of all layers has so many bytes; 0: they go
        nowhere."""
        pipeline = self._forming(formation_id)
        if pipeline is not None:
            down_s = self._state.stand(pipeline, now_s, kv_block_bytes)
            attributes = {"formation": formation_id, "down_s": f"{down_s:.3f}"}
            self._happen([LogEvent("pipeline_ready", "", pipeline.pipeline_id, attributes)])

    def measured(self, formation_id: str, kv_block_bytes: int) -> None:
        """A full KV block of a formation's layers has so many bytes; it stood before that was
        noted."""
        pipeline = self._state.pipeline(formation_id)
        if pipeline is not None:
            pipeline.measure(kv_block_bytes)
            self._happen()

    def form_failed(self, formation_id: str, reason: str, now_s: float) -> None:
        """Some member does not; dissolved, and formed anew after a pause. Behind the second time in
        a row its members are asked to load again: one may hold something else than it said."""
        pipeline = self._forming(formation_id)
        if pipeline is None or pipeline.formation is None:
            return
        formation = pipeline.formation
        self._happen(
            dissolve(self._state, self.settings, pipeline, f"form_failed: {reason}", now_s)
        )
        if pipeline.forms.failures >= _FORMS_ON_TRUST:
            for member in self._state.living(formation):
                self._state.forget_stage(self._state.nodes[member.node_id])

    def _forming(self, formation_id: str) -> Pipeline | None:
        pipeline = self._state.pipeline(formation_id)
        formation = pipeline.formation if pipeline is not None else None
        return pipeline if formation is not None and formation.forming else None

    # Interruptions

    def interrupt(
        self,
        node_id: str,
        notice_s: float,
        kill: bool,
        now_s: float,
        kind: NoticeKind = NoticeKind.OPERATOR,
    ) -> None:
        """A notice, or an order to kill. Raises NotFound. The same notice twice changes nothing, no
        more than a later one."""
        node = self._there(node_id)
        if kill:
            self._happen([LogEvent("kill_ordered", node_id), TerminateNode(node_id, kill=True)])
        else:
            self._happen(notice(node, now_s + notice_s, now_s, kind))

    def advise(self, node_id: str) -> None:
        """The node is likely to be taken away: a replacement first, and it serves on. Raises
        NotFound. The same advice twice changes nothing."""
        if said := advise(self.settings, self._there(node_id)):
            self._happen(said)

    def _there(self, node_id: str) -> Node:
        node = self._state.nodes.get(node_id)
        if node is None or node.lost:
            raise NotFound("no such node", field="node_id")
        return node

    def drained(self, formation_id: str, sealed: int, now_s: float) -> None:
        """Every generation of the formation is sealed."""
        state, pipeline = self._state, self._state.pipeline(formation_id)
        if pipeline is None or not pipeline.drains:
            return
        formation = state.end_formation(pipeline, self.settings, "drained", now_s)
        self._happen(
            [
                LogEvent("handover_finished", "", pipeline.pipeline_id, {"sealed": str(sealed)}),
                DissolveFormation(formation_id, state.living(formation)),
                *follow(state, self.settings, pipeline),
            ]
        )

    def copied(self, formation_id: str, now_s: float) -> None:
        """Blocks have gone ahead of what the formation runs, as far as they did."""
        pipeline = self._state.pipeline(formation_id)
        if pipeline is not None:
            pipeline.copied()
            self._happen()

    def departed(self, formation_id: str, now_s: float) -> None:
        """Nothing runs any more in a formation that departs, or it did not answer: it is drained
        at once."""
        pipeline = self._state.pipeline(formation_id)
        if pipeline is not None and pipeline.departing and pipeline.is_ready:
            self._happen(hand_over(self._state, pipeline, now_s))

    def drain_failed(self, formation_id: str, reason: str, now_s: float) -> None:
        """The head did not answer; the formation is dissolved all the same."""
        pipeline_id = self.view.pipeline_of(formation_id)
        self._happen([LogEvent("drain_failed", "", pipeline_id, {"reason": reason})])
        self.drained(formation_id, 0, now_s)

    def _happen(self, actions: Iterable[Action] = ()) -> None:
        """Something did: what it asks for by itself, and whatever is lacking behind it."""
        self._actions += actions
        self._due_s = -inf

    # Time

    def wakes_at_s(self) -> float:
        """When to advance next, if nothing happens before."""
        return min(self._due_s, self._state.liveness.wakes_at_s())

    def advance(self, now_s: float) -> list[Action]:
        """What is to be done by now: call it behind events, and at `wakes_at_s`. Behind a longer
        gap nobody counts as dead, as after a restart: who was stopped has heard nobody."""
        self._heed(self._state.liveness.look(now_s), now_s)
        if now_s < self._due_s:
            return []
        actions, self._actions = self._actions, []
        actions += carry_out_due(self._state, self.settings, now_s)
        for _ in range(_ROUNDS):
            lacking = steps(self._state, self.settings, self.market, self._draw_id, now_s)
            actions += lacking
            if not lacking:
                break
        self._due_s = next_due_s(self._state, self.settings, self.market, now_s)
        actions += self._routes_changed()
        changes = self._notes.changes(self._state)
        return [PersistCluster(changes), *actions] if changes else actions

    def _routes_changed(self) -> list[Action]:
        routes, leaving = (
            routes_of(self._state, self.settings),
            not_for_new(self._state, self.settings),
        )
        deployed = deployed_models(self._state)
        if (routes, leaving, deployed) == (self._routes, self._handing_over, self._deployed):
            return []
        self._routes, self._handing_over, self._deployed = routes, leaving, deployed
        self._route_version += 1
        return [RoutesChanged(self._route_version)]

    # What others see

    def routes(self) -> tuple[int, tuple[Route, ...]]:
        """Version and pipelines that take new requests."""
        return self._route_version, self._routes

    def handing_over(self) -> tuple[str, ...]:
        """Formations that serve what they have and take nothing new; of the same version."""
        return self._handing_over

    @property
    def plan(self) -> Plan | None:
        """What is carried out."""
        return self._state.plan

    @property
    def view(self) -> View:
        """Of nodes, pipelines, and what they lack, as they are now."""
        return View(self._state, self.settings, self.market)
