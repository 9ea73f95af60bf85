"""A simulated controller: the production ledger and cluster over a store that can be cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from services.common.demand import Demand
from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShuntError,
)
from services.common.exchange import Checkpoint, KvSource, ResumeQuestion
from services.common.nodes import NodeFacts
from services.controller.core.cluster import actions as cluster_actions
from services.controller.core.cluster import budget
from services.controller.core.cluster.actions import (
    AskPlan,
    Beat,
    CopyAhead,
    DepartFormation,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    PersistCluster,
    RoutesChanged,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.dealer import Dealer
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import NodeGone, ProviderEvent
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.replanning import Replanner
from services.controller.core.cluster.succession import Succession
from services.controller.core.cluster.workload import Workloads
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.records import HeadBound, Record
from simulator.environment.addresses import CONTROLLER, PLACEMENT, ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Call, Reply, Stream
from simulator.processes.controlling import PLAN_S, ControllerMonitor
from simulator.processes.departures import Departures
from simulator.processes.formations import Formations
from simulator.processes.journaling import Journaling
from simulator.processes.provider import SimulatedProvider
from simulator.processes.replans import Replans

SHORTEST_SLEEP_S = 0.001
TURN_S = 0.002
"""The longest that a turn of the controller's loop takes."""


class SimulatedController(Journaling):
    """One life of the controller; a restart makes the next from what is durable."""

    def __init__(
        self,
        environment: Environment,
        monitor: ControllerMonitor,
        provider: SimulatedProvider,
        records: list[Record],
        notes: dict[str, str],
    ) -> None:
        super().__init__(CONTROLLER, environment.network)
        self.environment = environment
        self.monitor = monitor
        self.provider = provider
        self.begin_journal(records)
        self.notes = notes
        """Durable, of the cluster."""
        self._formations = Formations(self)
        self._departures = Departures(self)
        self._wakes_at_s = -inf
        self._stirred = False
        self.changing = False
        """Which models are served."""
        self.deeds = 0
        """How often something was to be done: while it is the same, so is the cluster."""
        monitor.restarted()
        now_s, settings = self.clock.now_s, environment.settings
        self.ledger = Ledger.recover(settings.ledger, records, now_s)
        named = settings.cluster.budget_per_hour
        noted = notes.get(budget.NOTE)
        per_hour = named if noted is None else budget.Budget.from_json(noted).begun_with(named)
        cluster = replace(settings.cluster, budget_per_hour=per_hour)
        draw_id = environment.draw_id
        self.cluster = Cluster.recover(cluster, draw_id, notes, now_s, now_s, settings.goals)
        self.dealer = Dealer(self.cluster, shun_offer_s=settings.shun_offer_s)
        self.act(self.dealer.offered(provider.offers()))
        self.cluster.start(now_s)
        for node in self.cluster.view.nodes():
            if provider.adopt(node.node_id):
                self.dealer.lives(node.node_id, provider.offer_of(node.node_id))
            else:
                self.dealer.hear(NodeGone(node.node_id, "ended meanwhile"), now_s)
        self.advance()
        wishes = settings.wishes
        if wishes is not None:
            succession = Succession(
                Replanner(settings.replanning),
                replace(wishes, budget_per_hour=per_hour),
                settings.succession,
                cluster=self.cluster,
                market=self.dealer.market,
                workloads=Workloads(settings.workloads, now_s),
            )
            self.replans = Replans(self, succession, self._note_budget)
            self.every(settings.look_s, self.replans.look)
        self.every(1.0, lambda: self.commit(self.ledger.tick(self.clock.now_s), lambda _: None))

    def stir(self) -> None:
        """Something happened to the core, which is asked once for all that happens in a turn of
        the loop."""
        if not self._stirred:
            self._stirred = True
            self.after(TURN_S * self.environment.random.random(), self.advance)

    def advance(self) -> None:
        """Does what the core asks by now, and wakes it when it has something to do next: time
        jumps there."""
        self._stirred = False
        self.act(self.cluster.advance(self.clock.now_s))
        wakes_at_s = self.cluster.wakes_at_s()
        if self._wakes_at_s <= self.clock.now_s or wakes_at_s < self._wakes_at_s:
            self._wakes_at_s = max(wakes_at_s, self.clock.now_s + SHORTEST_SLEEP_S)
            self.after(self._wakes_at_s - self.clock.now_s, self._wake, self._wakes_at_s)

    def _wake(self, planned_s: float) -> None:
        if planned_s == self._wakes_at_s:  # else there was a reason to wake sooner
            self._wakes_at_s = -inf
            self.advance()

    def thaw(self) -> None:
        """As SIGCONT does: the overdue timer goes before all that came meanwhile."""
        self.frozen = self.late = False
        self.run(self.advance)
        super().thaw()

    def _note_budget(self, per_hour: float) -> None:
        named = self.environment.settings.cluster.budget_per_hour
        self.notes[budget.NOTE] = budget.Budget(per_hour, named).to_json()

    # What others ask

    def register(self, reply: Reply, facts: NodeFacts) -> None:
        """A node is there."""
        offer_id = self.provider.offer_of(facts.node_id)

        def register() -> float:
            self.cluster.register(facts, self.clock.now_s)
            if offer_id:
                self.act(self.dealer.found(facts, offer_id))
            return self.cluster.tell_interval_s(facts.incarnation)

        self._answer(reply, register)

    def beats(self, stream: Stream, incarnation: str) -> None:
        """A node's signs of life; what is answered asks it to register again."""

        def answer(result: Any) -> None:
            if isinstance(result, ShuntError):
                stream.send(self, result)

        def beat(message: Beat) -> None:
            self._answer(answer, lambda: self.cluster.heartbeat(message, self.clock.now_s))

        stream.on_message[self] = beat

    def _answer(self, reply: Reply, tell: Callable[[], object]) -> None:
        try:
            answer = tell()
        except ShuntError as error:
            reply(error)
            return
        self.advance()
        reply(answer)

    def reported(self, router_id: str, measured_s: float, demands: dict[str, Demand]) -> None:
        """A router says what it was asked for."""
        if self.environment.settings.wishes is not None:
            self.replans.reported(router_id, measured_s, demands)

    def journal(self, stream: Stream, incarnation: str) -> None:
        """A head's checkpoints."""
        stream.on_message[self] = lambda message: self._checkpoints(stream, message)

    def _checkpoints(self, stream: Stream, sent: tuple[int, tuple[Checkpoint, ...]]) -> None:
        message, checkpoints = sent
        for checkpoint in checkpoints:
            runs_at = self.cluster.view.runs_at(checkpoint.formation_id)
            before = self.monitor.before(self.ledger, checkpoint)
            outcome = self.ledger.checkpoint(checkpoint, runs_at, self.clock.now_s)
            self.monitor.checkpoint(self.ledger, checkpoint, outcome, before)
            self.commit(outcome, lambda result: stream.post(self, (message, result)))
            for record in outcome.records:
                if isinstance(record, HeadBound):
                    self._departures.follow(record)

    def resume(self, reply: Call, question: ResumeQuestion, until_s: float) -> None:
        """Waits while there is no head to grant to, and somebody waits for the grant."""
        now_s = self.clock.now_s
        if reply.given_up:
            self.ledger.left(question.generation_id, now_s)
            return
        try:
            heads, coming = self.cluster.view.heads(now_s), self.cluster.view.coming()
            outcome = self.ledger.resume(question, heads, now_s, coming)
        except ShuntError as error:
            reply(error)
            return
        if outcome is not None:
            self.monitor.granted(self.ledger, question, outcome)
            left = self.ledger.formation_left(question.generation_id)
            self.commit(outcome, partial(self._grant, reply, question.generation_id, left))
        elif now_s < until_s:
            self.after(0.1, self.resume, reply, question, until_s)
        else:
            reply(DeadlineExceeded("no pipeline"))

    def _grant(self, reply: Call, generation_id: str, left: str, grant: Any) -> None:
        travels = self.environment.settings.kv_travels
        if travels and grant.head is not None and grant.head.formation_id != left:
            grant = replace(grant, kv_source=KvSource(left, ()))
        if reply.given_up:
            self.ledger.left(generation_id, self.clock.now_s)
        reply(grant)

    # What the cluster asks

    def act(self, actions: Sequence[cluster_actions.Action]) -> None:
        """Does what the core asks."""
        self.deeds += bool(actions)
        for action in actions:
            if isinstance(action, LaunchNode):
                self._launch(action)
            elif isinstance(action, TerminateNode):
                self.monitor.ends_node(self.cluster, action)
                self.after(0.01, self._terminate, action)
            elif isinstance(action, AskPlan):
                self._plan(action)
            elif isinstance(action, LoadStage):
                self._formations.load(action)
            elif isinstance(action, FormPipeline):
                self._formations.form(action)
            elif isinstance(action, DissolveFormation):
                self._formations.dissolve(action)
            elif isinstance(action, DepartFormation):
                self._departures.depart(action)
            elif isinstance(action, CopyAhead):
                self._departures.copy_ahead(action)
            elif isinstance(action, DrainFormation):
                self._departures.drain(action)
            elif isinstance(action, RoutesChanged):
                self._tell_routes()
            elif isinstance(action, PersistCluster):
                for key, note in action.notes.items():
                    if note is None:
                        del self.notes[key]
                    else:
                        self.notes[key] = note
            elif isinstance(action, ShunOffer):
                self.dealer.shun(action.node_id, self.clock.now_s)
            else:
                self.monitor.cluster_event(self.cluster, action)

    def _tell_routes(self) -> None:
        routes, handing_over = self.cluster.routes()[1], self.cluster.handing_over()
        for router in self.network.living(ROUTERS):
            self.network.tell(router, "update", routes, handing_over, after_s=0.002)

    # The provider

    def _launch(self, action: LaunchNode) -> None:
        offer = self.dealer.order(action, self.clock.now_s)
        if offer is not None:
            self.monitor.orders(action.node_id, offer, self.dealer.market)
            self.provider.launch(action.node_id, offer)
        else:
            self.stir()

    def _terminate(self, action: TerminateNode) -> None:
        try:
            self.provider.terminate(action.node_id)
        except FailedPrecondition:
            self.dealer.over(action.node_id)
        if action.kill:
            self.dealer.over(action.node_id)

    def provider_says(self, event: ProviderEvent) -> None:
        """A node has ended or will be, a launch came to nothing, offers are others."""
        with suppress(InvalidArgument, NotFound):  # a notice that counts for nothing
            actions = self.dealer.hear(event, self.clock.now_s)
            self.monitor.hears(event, self.dealer.market)
            self.act(actions)
            self.stir()

    # What others do for the cluster

    def _plan(self, ask: AskPlan) -> None:
        def planned(result: Any) -> None:
            cluster, now_s = self.cluster, self.clock.now_s
            if isinstance(result, ShuntError):
                cluster.plan_failed(result.message, result.permanent, now_s)
            else:
                cluster.plan_ready(result, now_s)
            self.stir()

        self.call(PLACEMENT, "plan", (ask,), planned, PLAN_S)

    def adopt(self, plan: Plan) -> None:
        """An operator hands it in."""
        serving = self.monitor.adopts(plan)
        self.cluster.plan_ready(plan, self.clock.now_s)
        self.monitor.adopted(serving)
        self.stir()

    def deploy(self, goals: Goals) -> None:
        """An operator has other models served: one more where placement knows how, one less in any
        case."""
        self.changing = True
        question = self.cluster.view.plan_question(goals)
        self.call(PLACEMENT, "plan", (question,), partial(self._deployed, goals), PLAN_S)

    def _deployed(self, goals: Goals, result: Any) -> None:
        self.changing, cluster = False, self.cluster
        plan = result if isinstance(result, Plan) else cluster.plan
        if plan is None or (plan is cluster.plan and goals.models > cluster.goals.models):
            return
        rest = tuple(one for one in plan.deployments if one.model in goals.models)
        plan = Plan(cluster.view.next_plan_number, rest)
        self.environment.settings = replace(self.environment.settings, goals=goals)
        serving = self.monitor.adopts(plan)
        cluster.aim_at(goals, plan, self.clock.now_s)
        self.monitor.adopted(serving)
        self.stir()
