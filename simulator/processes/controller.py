"""A simulated controller: the production ledger and cluster over a store that can be cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from services.common.errors import DeadlineExceeded, ShuntError
from services.common.exchange import Checkpoint, ResumeQuestion
from services.common.generation import CancelReason, LayerRange
from services.common.nodes import NodeFacts
from services.controller.core.cluster import actions as cluster_actions
from services.controller.core.cluster.actions import (
    AskPlan,
    Beat,
    DissolveFormation,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
    PersistCluster,
    RoutesChanged,
    TerminateNode,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import Outcome
from services.controller.core.ledger.records import Record
from simulator.environment.network import Process, Reply, Stream

if TYPE_CHECKING:
    from simulator.world import World

LAYERS = (LayerRange(0, 18), LayerRange(18, 30))


class SimulatedController(Process):
    """One life of the controller; a restart makes the next from what is durable."""

    def __init__(self, world: World, records: list[Record], snapshot: str) -> None:
        super().__init__("controller", world.clock)
        self.world = world
        self.records = records
        """Durable."""
        self.snapshot = snapshot
        self._pending: list[tuple[tuple[Record, ...], Callable[[], None]]] = []
        self._committing = False
        self._dissolving: Counter[str] = Counter()
        """Calls to processes that are to leave a formation, by process."""
        self._waiting_for_leave: list[tuple[list[str], Callable[..., None], tuple[Any, ...]]] = []
        now_s, settings = world.clock.now_s, world.settings
        self.ledger = Ledger.recover(settings.ledger, records, now_s)
        cluster = world.cluster_settings
        if snapshot:
            self.cluster = Cluster.recover(cluster, world.draw_id, snapshot, now_s, now_s)
        else:
            self.cluster = Cluster(cluster, world.draw_id, now_s, now_s)
        self.act(self.cluster.start(now_s))
        self.every(0.1, self._tick)
        self.every(1.0, lambda: self._commit(self.ledger.tick(self.clock.now_s), lambda _: None))

    def _tick(self) -> None:
        self.act(self.cluster.tick(self.clock.now_s))

    def thaw(self) -> None:
        """As SIGCONT does: the overdue timer goes before all that came meanwhile."""
        self.frozen = self.late = False
        self.run(self._tick)
        super().thaw()

    # The store

    def _commit(self, outcome: Outcome[Any], reply: Reply) -> None:
        for event in outcome.events:
            self.world.monitor.ledger_event(event)
        if not outcome.records and not self._pending:
            reply(outcome.reply)
            return
        self._pending.append((outcome.records, lambda: reply(outcome.reply)))
        if not self._committing:
            self._committing = True
            self.after(0.001 + 0.004 * self.world.random.random(), self._committed)

    def _committed(self) -> None:
        pending, self._pending = self._pending, []
        self._committing = False
        for records, _ in pending:
            self.world.monitor.durable(self.ledger, records)
            self.records.extend(records)
        for _, release in pending:
            release()

    # What others ask

    def register(self, reply: Reply, facts: NodeFacts) -> None:
        """A node is there."""
        self._answer(reply, lambda: self.cluster.register(facts, self.clock.now_s))

    def beats(self, stream: Stream, incarnation: str) -> None:
        """A node's signs of life; what is answered asks it to register again."""

        def answer(result: Any) -> None:
            if isinstance(result, ShuntError):
                stream.send(self, result)

        def beat(message: Beat) -> None:
            self._answer(answer, lambda: self.cluster.heartbeat(message, self.clock.now_s))

        stream.on_message[self] = beat

    def _answer(self, reply: Reply, ask: Callable[[], list[cluster_actions.Action]]) -> None:
        try:
            actions = ask()
        except ShuntError as error:
            reply(error)
            return
        self.act(actions)
        reply(None)

    def journal(self, stream: Stream, incarnation: str) -> None:
        """A head's checkpoints."""
        stream.on_message[self] = lambda message: self._checkpoints(stream, message)

    def _checkpoints(self, stream: Stream, sent: tuple[int, tuple[Checkpoint, ...]]) -> None:
        message, checkpoints = sent
        for checkpoint in checkpoints:
            pipeline = self.cluster.pipeline_of(checkpoint.formation_id)
            before = self.world.monitor.before(self.ledger, checkpoint)
            outcome = self.ledger.checkpoint(checkpoint, pipeline, self.clock.now_s)
            self.world.monitor.checkpoint(self.ledger, checkpoint, outcome, before)
            self._commit(outcome, lambda result: stream.post(self, (message, result)))

    def resume(self, reply: Reply, question: ResumeQuestion, until_s: float) -> None:
        """Waits while there is no head to grant to."""
        now_s = self.clock.now_s
        try:
            outcome = self.ledger.resume(question, self.cluster.heads(), now_s)
        except ShuntError as error:
            reply(error)
            return
        if outcome is not None:
            self.world.monitor.granted(self.ledger, question, outcome)
            self._commit(outcome, reply)
        elif now_s < until_s:
            self.after(0.1, self.resume, reply, question, until_s)
        else:
            reply(DeadlineExceeded("no pipeline"))

    def cancel(
        self, reply: Reply, name: str, choice: int | None, reason: CancelReason, length: int | None
    ) -> None:
        """Ends a generation or a choice."""
        self._commit(self.ledger.cancel(name, choice, reason, length, self.clock.now_s), reply)

    def view(self, reply: Reply, name: str) -> None:
        """What the journal holds."""
        try:
            outcome = self.ledger.view(name, self.cluster.heads(), self.clock.now_s)
        except ShuntError as error:
            reply(error)
            return
        self._commit(outcome, reply)

    def claim(self, reply: Reply, ask_digest: str) -> None:
        """A client's retry looks for its first ask."""
        try:
            outcome = self.ledger.claim(ask_digest, self.cluster.heads(), self.clock.now_s)
        except ShuntError as error:
            reply(error)
            return
        self._commit(outcome, reply)

    # What the cluster asks

    def act(self, actions: list[cluster_actions.Action]) -> None:
        """Does what the core asks."""
        for action in actions:
            if isinstance(action, LaunchNode):
                self.world.launch(action, self)
            elif isinstance(action, TerminateNode):
                self.after(0.01, self.world.terminate, action.node_id)
            elif isinstance(action, AskPlan):
                self.after(0.01, self._plan, action)
            elif isinstance(action, LoadStage):
                self._behind_dissolves([action.incarnation], self._load, action)
            elif isinstance(action, FormPipeline):
                members = [member.incarnation for member in action.members]
                self._behind_dissolves(members, self._form, action, len(members) - 1)
            elif isinstance(action, DissolveFormation):
                for engine in self.world.engines_of(action.members):
                    self._dissolve(engine, action.formation_id)
            elif isinstance(action, DrainFormation):
                self._drain(action)
            elif isinstance(action, RoutesChanged):
                self.world.routes_changed(self.cluster)
            elif isinstance(action, PersistCluster):
                self.snapshot = action.snapshot
            else:
                self.world.monitor.cluster_event(action)

    def _dissolve(self, engine: Process, formation_id: str) -> None:
        def answered(_: Any) -> None:
            self._dissolving[engine.name] -= 1
            waiting, self._waiting_for_leave = self._waiting_for_leave, []
            for names, act, args in waiting:
                self._behind_dissolves(names, act, *args)

        self._dissolving[engine.name] += 1
        self._call(engine, self.world.engine(engine.name).dissolve, (formation_id,), answered)

    def _behind_dissolves(self, names: list[str], act: Callable[..., None], *args: Any) -> None:
        """Does it once these processes have left what they were told to leave, or did not answer,
        as the production runtime does."""
        if any(self._dissolving[name] for name in names):
            self._waiting_for_leave.append((names, act, args))
        else:
            act(*args)

    def _call(
        self, server: Process | None, serve: Callable[..., None], args: Any, answer: Reply
    ) -> None:
        self.world.network.call(self, server, serve, args, answer, 2.0)

    def _plan(self, ask: AskPlan) -> None:
        if self.world.random.random() < self.world.settings.plan_fails:
            self.act(self.cluster.plan_failed("no answer", False, self.clock.now_s))
            return
        size = len(LAYERS)
        planned: list[PlannedPipeline] = []
        for first in range(0, len(ask.nodes) - size + 1, size):
            nodes = ask.nodes[first : first + size]
            stages = tuple(
                PlannedStage(layers, 1, node.shape, node.node_id)
                for node, layers in zip(nodes, LAYERS, strict=True)
            )
            name = f"pipeline-{len(planned) + 1}"
            planned.append(PlannedPipeline(name, stages, 100.0 / (first + size)))
        if not planned:
            self.act(self.cluster.plan_failed("too few nodes", True, self.clock.now_s))
            return
        deployment = Deployment(ask.model, THROUGHPUT, tuple(planned))
        self.act(self.cluster.plan_ready(Plan(ask.number, (deployment,)), self.clock.now_s))

    def _load(self, load: LoadStage) -> None:
        engine = self.world.engine(load.incarnation)

        def loaded(result: Any) -> None:
            now_s, cluster = self.clock.now_s, self.cluster
            if isinstance(result, ShuntError):
                self.act(cluster.load_failed(load.node_id, load.incarnation, "", False, now_s))
            else:
                node, incarnation = load.node_id, load.incarnation
                self.act(cluster.load_done(node, incarnation, load.layers, result, now_s))

        self._call(engine, engine.load, (load.layers,), loaded)

    def _form(self, form: FormPipeline, index: int) -> None:
        """From the last stage to the head."""
        if not self.cluster.pipeline_of(form.formation_id):
            return  # a member was lost meanwhile
        engine = self.world.engine(form.members[index].incarnation)

        def formed(result: Any) -> None:
            if isinstance(result, ShuntError):
                self.act(self.cluster.form_failed(form.formation_id, "", self.clock.now_s))
            elif index == 0:
                self.act(self.cluster.formed(form.formation_id, self.clock.now_s))
            else:
                self._form(form, index - 1)

        self._call(engine, engine.form, (form, index), formed)

    def _drain(self, drain: DrainFormation) -> None:
        engine = self.world.engine(drain.head.incarnation)

        def drained(result: Any) -> None:
            now_s = self.clock.now_s
            if isinstance(result, ShuntError):
                self.act(self.cluster.drain_failed(drain.formation_id, "", now_s))
            else:
                self.act(self.cluster.drained(drain.formation_id, result, now_s))

        self._call(engine, engine.drain, (drain.formation_id,), drained)
