"""A simulated controller: the production ledger and cluster over a store that can be cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Protocol

from services.common.demand import Demand
from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShuntError,
)
from services.common.exchange import (
    Checkpoint,
    GenerationView,
    Grant,
    KvMember,
    KvSource,
    ResumeQuestion,
)
from services.common.generation import CancelReason
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
    LogEvent,
    PersistCluster,
    RoutesChanged,
    ShunOffer,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.dealer import Dealer
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import Market, NodeGone, Offer, ProviderEvent
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import Dividing, NextPlan, Question
from services.controller.core.cluster.replanning import Replanner
from services.controller.core.cluster.succession import Replanned, Succession
from services.controller.core.cluster.turns import Turns
from services.controller.core.cluster.workload import Workloads
from services.controller.core.departure.departure import Departure, Look
from services.controller.core.departure.link import Link
from services.controller.core.departure.move import Choice, Rates
from services.controller.core.departure.move import Stream as Leaving
from services.controller.core.departure.schedule import at_once, cheapest
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerEvent, Outcome
from services.controller.core.ledger.records import Forgotten, HeadBound, Kept, Record
from services.engine.backend import BLOCK_SIZE
from services.engine.core.copying import Heir
from simulator.environment.addresses import CONTROLLER, PLACEMENT, ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Call, Process, Reply, Stream
from simulator.processes.provider import SimulatedProvider
from simulator.processes.stages import BLOCK_BYTES

SHORTEST_SLEEP_S = 0.001
TURN_S = 0.002
"""The longest that a turn of the controller's loop takes."""
PLAN_S = 1.0
FOLLOWED_S = 20.0
"""So long blocks follow a prompt that is read."""
LINK_BYTES_PER_S = 1000.0
"""Of KV blocks, of which a position is an id here."""
SLOWER_S = 0.7
"""So long before a departure ends its link carries a third of what it did."""
CALL_S = 2.0
"""The longest that an engine may take to answer."""


class ControllerMonitor(Protocol):
    """Sees what the controller decides."""

    def restarted(self) -> None: ...
    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None: ...
    def before(self, ledger: Ledger, checkpoint: Checkpoint) -> Any: ...
    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None: ...
    def granted(
        self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Grant]
    ) -> None: ...
    def ledger_event(self, event: LedgerEvent) -> None: ...
    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None: ...
    def dissolves(self, incarnation: str, formation_id: str) -> None: ...
    def dissolved(self, incarnation: str, formation_id: str) -> None: ...
    def departs(
        self, formation_id: str, streams: Sequence[Leaving], rates: Rates, look: Look, end_s: float
    ) -> None: ...
    def forms(self, form: FormPipeline) -> None: ...
    def ends_node(self, cluster: Cluster, end: TerminateNode) -> None: ...
    def hears(self, event: ProviderEvent, market: Market) -> None: ...
    def orders(self, node_id: str, offer: Offer, market: Market) -> None: ...
    def operator_asks(self) -> None: ...
    def operator_told(self, replanned: Replanned | None) -> None: ...
    def asks(self, question: Question) -> None: ...
    def answers(self, question: Question, answer: NextPlan) -> None: ...
    def adopts(self, plan: Plan) -> dict[str, str]: ...
    def adopted(self, serving: dict[str, str]) -> None: ...


def stored(records: Sequence[Record], name: str) -> GenerationView | None:
    """What has left memory for the store, where it was not deleted since."""
    mine = (record for record in reversed(records) if record.generation_id == name)
    for record in mine:
        if isinstance(record, Kept):
            return record.view
        if isinstance(record, Forgotten):
            return None
    return None


class SimulatedController(Process):
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
        self.records = records
        """Durable."""
        self.notes = notes
        """Durable, of the cluster."""
        self._pending: list[tuple[tuple[Record, ...], Callable[[], None]]] = []
        self._committing = False
        self._turns = Turns()
        self._departures: dict[str, Departure] = {}
        """By formation, while it is not drained."""
        self._link = Link()
        self._link.carried(int(LINK_BYTES_PER_S), 1.0, self.clock.now_s)
        self._over: dict[str, float] = {}
        """Bytes of generations that are pushed, which are where they go on."""
        self._looked_s: dict[str, float] = {}
        """At a formation that departs, last."""
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
            self.succession = Succession(
                Replanner(settings.replanning),
                replace(wishes, budget_per_hour=per_hour),
                settings.succession,
                cluster=self.cluster,
                market=self.dealer.market,
                workloads=Workloads(settings.workloads, now_s),
            )
            self.every(settings.look_s, self._look)
        self.every(1.0, lambda: self._commit(self.ledger.tick(self.clock.now_s), lambda _: None))

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

    # The store

    def _commit(self, outcome: Outcome[Any], reply: Reply) -> None:
        for event in outcome.events:
            self.monitor.ledger_event(event)
        if not outcome.records and not self._pending:
            reply(outcome.reply)
            return
        self._pending.append((outcome.records, lambda: reply(outcome.reply)))
        if not self._committing:
            self._committing = True
            self.after(0.001 + 0.004 * self.environment.random.random(), self._committed)

    def _committed(self) -> None:
        pending, self._pending = self._pending, []
        self._committing = False
        for records, _ in pending:
            self.monitor.durable(self.ledger, records)
            self.records.extend(records)
        for _, release in pending:
            release()

    # What others ask

    def register(self, reply: Reply, facts: NodeFacts) -> None:
        """A node is there."""
        offer_id = self.provider.offer_of(facts.node_id)

        def register() -> None:
            self.cluster.register(facts, self.clock.now_s)
            if offer_id:
                self.act(self.dealer.found(facts, offer_id))

        self._answer(reply, register)

    def beats(self, stream: Stream, incarnation: str) -> None:
        """A node's signs of life; what is answered asks it to register again."""

        def answer(result: Any) -> None:
            if isinstance(result, ShuntError):
                stream.send(self, result)

        def beat(message: Beat) -> None:
            self._answer(answer, lambda: self.cluster.heartbeat(message, self.clock.now_s))

        stream.on_message[self] = beat

    def _answer(self, reply: Reply, tell: Callable[[], None]) -> None:
        try:
            tell()
        except ShuntError as error:
            reply(error)
            return
        self.advance()
        reply(None)

    def reported(self, router_id: str, measured_s: float, demands: dict[str, Demand]) -> None:
        """A router says what it was asked for."""
        if self.environment.settings.wishes is not None:
            now_s = self.clock.now_s
            self.succession.reported(router_id, router_id, measured_s, demands, now_s)

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
            self._commit(outcome, lambda result: stream.post(self, (message, result)))
            for record in outcome.records:
                if isinstance(record, HeadBound):
                    self._follow(record)

    def _follow(self, bound: HeadBound) -> None:
        """Blocks of what will be handed on go where it will go on, while its prompt is read."""
        view = self.cluster.view
        head = self.ledger.promise_onward(bound.generation_id, view.heads(self.clock.now_s))
        if head is None:
            return
        there, names = head.route.formation_id, frozenset({bound.generation_id})
        members = tuple(KvMember(m.address, m.incarnation, m.layers) for m in view.members(there))
        heir = Heir(members, names, there)
        args = (bound.formation_id, (heir,), FOLLOWED_S, True)
        self._call(bound.incarnation, "copy", args, timeout_s=FOLLOWED_S + CALL_S)

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
            self._commit(outcome, partial(self._grant, reply, question.generation_id, left))
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

    def cancel(
        self, reply: Reply, name: str, choice: int | None, reason: CancelReason, length: int | None
    ) -> None:
        """Ends a generation or a choice."""
        self._commit(self.ledger.cancel(name, choice, reason, length, self.clock.now_s), reply)

    def view(self, reply: Reply, name: str) -> None:
        """What the journal holds."""
        try:
            now_s = self.clock.now_s
            outcome = self.ledger.view(name, self.cluster.view.heads(now_s), now_s)
        except NotFound as error:
            unknown = error
            self._commit(Outcome(None), lambda _: reply(stored(self.records, name) or unknown))
            return
        self._commit(outcome, reply)

    def claim(self, reply: Reply, ask_digest: str) -> None:
        """A client's retry looks for its first ask."""
        try:
            now_s = self.clock.now_s
            outcome = self.ledger.claim(ask_digest, self.cluster.view.heads(now_s), now_s)
        except ShuntError as error:
            reply(error)
            return
        self._commit(outcome, reply)

    def claim_background(self, reply: Reply, at_most: int) -> None:
        """A router asks for what runs unread and has lost its reader."""
        now_s = self.clock.now_s
        heads = self.cluster.view.heads(now_s)
        self._commit(self.ledger.claim_background(heads, now_s, at_most), reply)

    def delete(self, reply: Reply, name: str) -> None:
        """Nothing of a generation is to be left."""
        self._commit(self.ledger.delete(name, self.clock.now_s), reply)

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
                self._begin_all(self._turns.load(action))
            elif isinstance(action, FormPipeline):
                self._begin_all(self._turns.form(action))
            elif isinstance(action, DissolveFormation):
                self._turns.dissolve(action)
                for member in action.members:
                    self._dissolve(action.formation_id, member.incarnation)
            elif isinstance(action, DepartFormation):
                self._departures[action.formation_id] = Departure(action.until_s)
                self._depart(action)
            elif isinstance(action, CopyAhead):
                self._copy_ahead(action)
            elif isinstance(action, DrainFormation):
                self._departures.pop(action.formation_id, None)
                self._drain(action)
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

    def _call(
        self,
        incarnation: str,
        method: str,
        args: tuple[Any, ...],
        answer: Reply = lambda _: None,
        timeout_s: float = CALL_S,
    ) -> None:
        self.call(incarnation, method, args, answer, timeout_s)

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

    def replan(self) -> None:
        """An operator has the whole planned anew. Raises FailedPrecondition where there is no plan
        yet."""
        self.succession.operator_asks(self.clock.now_s)
        self.monitor.operator_asks()
        self._look()

    def spend(self, per_hour: float) -> None:
        """An operator sets another budget, and has the whole planned anew within it. Raises
        FailedPrecondition where there is no plan yet."""
        named = self.environment.settings.cluster.budget_per_hour
        self.notes[budget.NOTE] = budget.Budget(per_hour, named).to_json()
        self.succession.spend(per_hour, self.clock.now_s)
        self.replan()
        self.stir()

    def _look(self) -> None:
        look = self.succession.look(self.clock.now_s)
        self.act(look.actions)
        if look.actions:
            self.stir()
        self._ask(look.question)

    def _ask(self, question: Question | None) -> None:
        if question is not None:
            self.monitor.asks(question)
            answered = partial(self._replanned, question)
            method = "divide" if isinstance(question, Dividing) else "replan"
            self.call(PLACEMENT, method, (question,), answered, PLAN_S)

    def _replanned(self, question: Question, result: Any) -> None:
        now_s = self.clock.now_s
        if isinstance(result, ShuntError):
            refused = self.succession.failed(question, result, now_s)
            self.act(refused.actions)
            if refused.refused:
                self.monitor.operator_told(None)
            self._ask(refused.question)
            return
        serving = self.monitor.adopts(result.plan) if result.plan is not None else {}
        taken = self.succession.answered(question, result, now_s)
        if any(isinstance(one, LogEvent) and one.kind == "plan_chosen" for one in taken.actions):
            self.monitor.answers(question, result)
            self.monitor.adopted(serving)
        if taken.told is not None:
            self.monitor.operator_told(taken.told)
        self.act(taken.actions)
        self._ask(taken.question)
        self.stir()

    def _load(self, load: LoadStage) -> None:
        def loaded(result: Any) -> None:
            now_s, cluster = self.clock.now_s, self.cluster
            if isinstance(result, ShuntError):
                cluster.load_failed(load, result.message, result.permanent, now_s)
            else:
                cluster.load_done(load, result, now_s)
            self.stir()

        timeout_s = self.environment.settings.hold_timeout_s
        self._call(load.incarnation, "hold", (load,), loaded, timeout_s)

    def _dissolve(self, formation_id: str, incarnation: str) -> None:
        self.monitor.dissolves(incarnation, formation_id)

        def answered(_: Any) -> None:
            self.monitor.dissolved(incarnation, formation_id)
            self._begin_all(self._turns.left(incarnation, formation_id))

        self._call(incarnation, "dissolve", (formation_id,), answered)

    def _begin_all(self, actions: list[FormPipeline | LoadStage]) -> None:
        for form in actions:
            if isinstance(form, LoadStage):
                self._load(form)
            elif self.cluster.view.pipeline_of(form.formation_id):  # no member was lost meanwhile
                self.monitor.forms(form)
                self._form(form)

    def _form(self, form: FormPipeline) -> None:
        """The head comes last, for it connects the others."""
        others = {member.incarnation for member in form.members[1:]}

        def formed(incarnation: str, result: Any) -> None:
            if isinstance(result, ShuntError):
                self.cluster.form_failed(form.formation_id, "", self.clock.now_s)
                self.stir()
            elif incarnation == form.members[0].incarnation:
                self.cluster.formed(form.formation_id, self.clock.now_s, BLOCK_BYTES)
                self.stir()
            else:
                others.discard(incarnation)
                if not others:
                    self._form_member(form, 0, formed)

        for index in range(1, len(form.members)) if others else (0,):
            self._form_member(form, index, formed)

    def _form_member(
        self, form: FormPipeline, index: int, formed: Callable[[str, Any], None]
    ) -> None:
        incarnation = form.members[index].incarnation
        self._call(incarnation, "form", (form, index), partial(formed, incarnation))

    def _depart(self, action: DepartFormation) -> None:
        formation_id, now_s = action.formation_id, self.clock.now_s
        departure = self._departures.get(formation_id)
        runs_at = self.cluster.view.runs_at(formation_id)
        if departure is None or runs_at is None:
            return
        observed, view = self.ledger.observed, self.cluster.view
        rates = observed.rates(runs_at.model, sum(view.beside(formation_id).values()))
        streams = self.ledger.streams(formation_id)
        if self.environment.settings.kv_travels:
            self._carry(formation_id, departure.end_s, streams)
            rates = replace(rates, link_bytes_per_s=self._link.bytes_per_s(now_s))
            streams = tuple(map(self._on_the_link, streams))
        look = departure.look(streams, rates, observed.lengths(runs_at.model), now_s)
        self._over |= dict.fromkeys((m.generation_id for m in look.pushes), 0.0)
        self.monitor.departs(formation_id, streams, rates, look, departure.end_s)

        def drained(result: Any) -> None:
            if self._departures.get(formation_id) is not departure:
                return
            if look.running and not isinstance(result, ShuntError):
                wakes_in_s = max(0.0, look.wakes_at_s - self.clock.now_s)
                self.after(wakes_in_s, self._depart, action)
            else:
                self.cluster.departed(formation_id, self.clock.now_s)
                self.stir()

        self._call(action.head.incarnation, "drain", (formation_id, look.running), drained)

    def _carry(self, formation_id: str, end_s: float, streams: Sequence[Leaving]) -> None:
        """Blocks of those that are pushed have gone over since the look before."""
        now_s, going = self.clock.now_s, [o for o in streams if o.generation_id in self._over]
        took_s = now_s - self._looked_s.get(formation_id, now_s)
        self._looked_s[formation_id] = now_s
        if going and took_s:
            rate = LINK_BYTES_PER_S / (3 if now_s > end_s - SLOWER_S else 1)
            for one in going:
                self._over[one.generation_id] += rate * took_s / len(going)
            self._link.carried(int(rate * took_s), took_s, now_s)

    def _on_the_link(self, stream: Leaving) -> Leaving:
        """With what of its full blocks is not over yet."""
        over = int(self._over.get(stream.generation_id, 0.0)) // BLOCK_BYTES
        return stream.with_blocks(BLOCK_BYTES, BLOCK_SIZE, over)

    def _copy_ahead(self, action: CopyAhead) -> None:
        name, now_s = action.formation_id, self.clock.now_s
        heads = [] if action.waited_for else self.cluster.view.heads(now_s)
        promised = self.ledger.promise(name, heads)
        streams = [self._on_the_link(one) for one in self.ledger.streams(name)]
        runs_at = self.cluster.view.runs_at(name)
        moves = at_once(streams, now_s, travels=True)
        if runs_at is not None and self.environment.random.random() < 0.5:
            moves = cheapest(streams, self.ledger.observed.rates(runs_at.model, inf), now_s)
        there: dict[str, set[str]] = {}
        for move in moves:
            if move.choice is Choice.PUSH:
                head = promised.get(move.generation_id)
                formation_id = head.route.formation_id if head is not None else ""
                there.setdefault(formation_id, set()).add(move.generation_id)
        view = self.cluster.view
        heirs = tuple(
            Heir(
                tuple(KvMember(m.address, m.incarnation, m.layers) for m in view.members(heir)),
                frozenset(names),
                heir,
            )
            for heir, names in there.items()
        )

        def copied(_: Any) -> None:
            self.cluster.copied(name, self.clock.now_s)
            self.stir()

        args = (name, heirs, action.limit_s)
        self._call(action.head.incarnation, "copy", args, copied, action.limit_s + CALL_S)

    def _drain(self, drain: DrainFormation) -> None:
        def drained(result: Any) -> None:
            now_s = self.clock.now_s
            if isinstance(result, ShuntError):
                self.cluster.drain_failed(drain.formation_id, "", now_s)
                self.stir()
            else:
                self.cluster.drained(drain.formation_id, result, now_s)
                self.stir()

        self._call(drain.head.incarnation, "drain", (drain.formation_id,), drained)
