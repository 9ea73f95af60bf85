"""The invariants of a generation, checked while a schedule runs and when it rests.

Numbers are those of the design's list of invariants; 11: nothing that is read waits behind what is
not; 12: no core raises what is no domain error; 13: no node is told to join a formation before it
has left the one it was told to leave; 14: a node is in one formation, a formation covers every
layer once; 15: what runs becomes what the plan says; 16: launches have reasons; 17: a plan changes
what it was said to change; 18: spares are there, loaded, when faults have ceased, and who is about
to go is given no place; 19: a generation is at heads of its own model alone; 20: what serves gives
way to the plan when what follows it can begin; 21: no node is ended while it serves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import (
    Cancelled,
    Diverged,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    Superseded,
    Unavailable,
)
from services.common.exchange import Checkpoint, Frame, Grant, Phase, ResumeQuestion
from services.common.generation import FinishReason, GenerationRequest
from services.controller.core.cluster.actions import (
    Action,
    FormPipeline,
    LaunchNode,
    LogEvent,
    PipelineState,
    TerminateNode,
)
from services.controller.core.cluster.changes import in_the_way
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.difference import Difference
from services.controller.core.cluster.lacks import waits_for_money
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.state import State
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerEvent, Outcome
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
)
from services.engine.core.actions import SequenceKey
from services.engine.core.generations import Generations
from services.engine.core.held import Life
from services.engine.core.scheduler import Step
from services.router.core.follower import Follower
from services.router.core.transcript import Usage
from simulator.processes.client import Client
from simulator.processes.controller import LAYERS
from simulator.processes.engine import SimulatedEngine
from simulator.processes.stages import bytes_of, token_of
from simulator.world import World

TROUBLES = ("node_lost", "interruption_noticed", "load_failed", "node_released")
SETTLED_LAUNCHES = 3
"""Failed launches with which a plan may be made from the nodes there are; one of which nobody
hears again is waited for longer than for a plan."""

LAYER_COUNT = LAYERS[-1].end
YIELDS_WITHIN_S = 0.5
"""What nobody reads gives way within this long: the blip, a tick of the head, a step."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Durable:
    """What the store has of a generation."""

    epoch: int
    ids: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader gets for one choice."""

    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None


def reference(request: GenerationRequest, choice: int) -> Answer:
    """Of an exact engine that nobody disturbs, and a router that reads the whole at once."""
    sampling, ids, text = request.sampling, [], ""
    while True:
        held = bytes_of((*request.prompt_ids, *ids))
        token = token_of(sampling, choice, held, "")
        ids.append(token)
        if token in sampling.eos_token_ids and not sampling.ignore_eos:
            return Answer(tuple(ids), text, FinishReason.STOP)
        text += f" {token}"
        if stops := [stop for stop in request.stop_strings if stop in text]:
            cut = min(text.index(stop) for stop in stops)
            return Answer(tuple(ids), text[:cut], FinishReason.STOP)
        if len(ids) == sampling.max_tokens:
            return Answer(tuple(ids), text, FinishReason.LENGTH)


def answer(client: Client, choice: int) -> Answer:
    """As far as a client has it."""
    return Answer(tuple(client.ids[choice]), client.texts[choice], client.finish[choice])


class Oracle:
    """Watches one world."""

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact
        self.world: World | None = None
        self.trace: list[str] = []
        self.events: list[tuple[float, str, str]] = []
        """Time, kind and pipeline of the cluster's events."""
        self.plans = 0
        """Given beside those that the cluster asked for."""
        self.vacancies = 0
        """Seats for which those named no node that could be had."""
        self.troubled: set[str] = set()
        """Nodes that another may have taken the place of."""
        self.questions = 0
        self.grants: Counter[str] = Counter()
        self.planned: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._samples: dict[tuple[str, int, int, int], int] = {}
        self._sampled_to: dict[tuple[str, int, int, str], int] = {}
        """By generation, epoch, choice and head: two may run one epoch until one is bound."""
        self._durable: dict[str, Durable] = {}
        self._tombstones: set[str] = set()
        self._owners: dict[tuple[str, int], tuple[str, str]] = {}
        """Head of each epoch, as the present controller has it."""
        self._durable_owners: dict[tuple[str, int], tuple[str, str]] = {}
        self._ledger: Ledger | None = None
        self._leaving: set[tuple[str, str]] = set()
        """Members that were told to leave a formation, and have yet to answer."""
        self._references: dict[tuple[str, int], Answer] = {}
        self._bases: dict[tuple[str, int], dict[int, int]] = {}

    def fail(self, number: int, message: str) -> None:
        """Raises Violation."""
        raise Violation(f"invariant {number}: {message}")

    def adopted(self, told: Difference, cluster: Cluster, actions: Sequence[Action]) -> None:
        """A plan was adopted, of which this had been told before."""
        views = cluster.pipelines_view()
        wanted = {p.pipeline_id for _, p in cluster.plan.pipelines()} if cluster.plan else set()
        said = {
            name: [(stage.node_id, stage.layers) for stage in stages]
            for name, stages in told.pipelines.items()
        }
        done = {
            view.pipeline_id: [(stage.node_id, stage.layers) for stage in view.stages]
            for view in views
            if view.pipeline_id in wanted
        }
        if said != done:
            self.fail(17, f"{said} was told, and there is {done}")
        events = [action for action in actions if isinstance(action, LogEvent)]
        spares = {event.node_id for event in events if event.kind == "spare_wanted"}
        launches = [action.node_id for action in actions if isinstance(action, LaunchNode)]
        launched = [node_id for node_id in launches if node_id not in spares]
        if list(told.launched) != launched:
            self.fail(17, f"{list(told.launched)} was told, and {launched} launched")

    def note(self, *words: object) -> None:
        """A line of the trace, by which two runs of a seed are compared."""
        now_s = self.world.clock.now_s if self.world is not None else 0.0
        self.trace.append(f"{now_s:.6f} {' '.join(map(str, words))}")

    # The journal

    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None:
        """Records reached the store."""
        for record in records:
            name = record.generation_id
            self.note("durable", record)
            if isinstance(record, Forgotten):
                self._durable.pop(name, None)
                self._tombstones.discard(name)
                continue
            if name in self._tombstones:
                self.fail(4, f"{record} behind the end of {name}")
            if isinstance(record, (HeadBound, Granted)):
                epoch = record.epoch if isinstance(record, Granted) else 1
                self._durable_owners[name, epoch] = record.incarnation, record.formation_id
            if isinstance(record, HeadBound):
                if name in self._durable:
                    self.fail(3, f"{name} is bound twice")
                self._durable[name] = Durable(1)
                continue
            if isinstance(record, Ended) and record.choice is None:
                self._tombstones.add(name)
            if isinstance(record, Granted):
                held = self._durable.setdefault(name, Durable(0))
                if record.epoch <= held.epoch:
                    self.fail(3, f"{name}: epoch {record.epoch} behind {held.epoch}")
                held.epoch = record.epoch
                for span in record.spans:
                    self._append(name, span.choice, span.start, span.ids)
            if isinstance(record, IdsAppended):
                self._append(name, record.span.choice, record.span.start, record.span.ids)

    def _append(self, name: str, choice: int, start: int, ids: Sequence[int]) -> None:
        held = self._durable[name].ids[choice]
        if start != len(held):
            self.fail(3, f"{name}: an append at {start} of a journal of {len(held)}")
        held += ids

    def before(self, ledger: Ledger, checkpoint: Checkpoint) -> Any:
        """State before a checkpoint, for comparison behind it."""
        entry = ledger._entries.get(checkpoint.generation_id)
        ended = checkpoint.generation_id in ledger._tombstones
        return None if entry is None else (entry.epoch, entry.sealed, entry.lengths), ended

    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None:
        """The ledger answered a checkpoint."""
        if outcome.reply.refusal is not None:
            return
        self._check_model(ledger, checkpoint)
        known, ended = before
        name, epoch = checkpoint.generation_id, checkpoint.epoch
        if ended:
            self.fail(4, f"{name} accepted behind its end")
        if known is not None and known[0] != epoch:
            self.fail(4, f"{name}: epoch {epoch} accepted while {known[0]} holds")
        if ledger is not self._ledger:  # what the one before had not made durable, nobody heard
            self._ledger, self._owners = ledger, dict(self._durable_owners)
        owner = (checkpoint.incarnation, checkpoint.formation_id)
        if self._owners.setdefault((name, epoch), owner) != owner:
            self.fail(2, f"{name}: epoch {epoch} has two heads")
        for record in outcome.records:
            if isinstance(record, IdsAppended):
                span = record.span
                for position, token in enumerate(span.ids, span.start):
                    sampled = self._samples.get((name, epoch, span.choice, position))
                    if sampled != token:
                        self.fail(4, f"{name}: {token} was never sampled in epoch {epoch}")
        again = ledger.checkpoint(checkpoint, None, self._now_s)
        if again.records or again.reply.lengths != outcome.reply.lengths:
            self.fail(7, f"{name}: a doubled checkpoint changes the journal")

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s if self.world is not None else 0.0

    def asked(self, question: ResumeQuestion) -> None:
        """A reader asks for an epoch."""
        self.questions += 1

    def _check_model(self, ledger: Ledger, checkpoint: Checkpoint) -> None:
        runs_at = self.world.controller.cluster.runs_at(checkpoint.formation_id)
        model = ledger.model_of(checkpoint.generation_id)
        if runs_at is not None and runs_at.model != model:
            self.fail(19, f"{checkpoint.generation_id} runs at {runs_at.pipeline_id}")

    def granted(self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Grant]) -> None:
        """The ledger answered a Resume."""
        name, grant = question.generation_id, outcome.reply
        base = {span.choice: span.ids for span in grant.base}
        self.note("granted", name, grant.epoch, grant.head and grant.head.formation_id)
        record = next((r for r in outcome.records if isinstance(r, Granted)), None)
        if record is None:
            return
        self._bases[name, grant.epoch] = {choice: len(ids) for choice, ids in base.items()}
        durable = self._durable.get(name, Durable(0))
        presented = {span.choice: span.ids for span in question.held}
        for ids in (durable.ids, presented):
            for choice, held in ids.items():
                if tuple(base.get(choice, ())[: len(held)]) != tuple(held):
                    self.fail(3, f"{name}: the base leaves out what was acknowledged or presented")
        if grant.head is None:
            return
        if grant.head.model != record.request.model:
            self.fail(19, f"{name} is granted to a head of {grant.head.model.model_id}")
        again = ledger.resume(
            question,
            self.world.controller.cluster.heads(self._now_s) if self.world else (),
            self._now_s,
        )
        if again is None or again.records or again.reply != grant:
            self.fail(7, f"{name}: the same question gets another answer")
        self.grants[name] += record.epoch > 1
        if outcome.events[0].attributes["planned"] == "true":
            self.planned[name] += 1
            owner, _ = self._owners.get((name, record.epoch - 1), ("", ""))
            for choice in range(question.request.choices if question.request else 0):
                end = self._sampled_to.get((name, record.epoch - 1, choice, owner), 0)
                finished = any(s.choice == choice and s.finish_reason for s in grant.base)
                if end > len(base.get(choice, ())) and not finished:
                    self.fail(10, f"{name}: a planned move samples {end} again")

    def ledger_event(self, event: LedgerEvent) -> None:
        """Of the event log."""
        self.note(event.kind, event.generation_id, event.pipeline_id)

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        """Of the event log."""
        self.note(event.kind, event.node_id, event.pipeline_id)
        self.events.append((self._now_s, event.kind, event.pipeline_id))
        if event.kind in TROUBLES:
            self.troubled.add(event.node_id)
        if event.kind == "handover_started":
            self._check_gives_way(cluster._state, event.pipeline_id)
        elif event.kind == "stage_taken":
            self._check_taken(event.node_id)
        elif event.kind == "spare_wanted":
            self._check_wanted()

    def _check_gives_way(self, state: State, pipeline_id: str) -> None:
        """It is drained for the plan's sake, and no notice has it so."""
        giving = state.pipelines[pipeline_id]
        if not giving.retiring:
            return
        nodes = [state.nodes[seat.node_id] for seat in giving.seats]
        followers = [p for p in state.wanted() if giving in in_the_way(state, p)]
        if any(node.departs for node in nodes) or all(p.is_ready for p in state.wanted()):
            return
        if not any(self._can_begin(state, follower) for follower in followers):
            self.fail(20, f"{pipeline_id} gives way to {followers}, which is not prepared")

    def _can_begin(self, state: State, pipeline: Pipeline) -> bool:
        """Every process holds its stage, or has fetched it and serves with another one; those that
        ended and were not missed yet are nobody's mistake."""
        provider = self.world.provider if self.world is not None else None
        for seat in pipeline.seats:
            if waits_for_money(seat):
                continue
            process = provider.nodes.get(seat.node_id) if provider is not None else None
            if not isinstance(process, SimulatedEngine):
                return False
            stage, holdings = (seat.stage.model, seat.stage.layers), process.holdings
            has = holdings.can_form(stage) or stage in holdings.fetched
            known = process.alive and process.name == state.nodes[seat.node_id].incarnation
            if known and not has:
                return False
        return True

    def ends_node(self, cluster: Cluster, end: TerminateNode) -> None:
        """The cluster has a node ended; a kill is somebody's order."""
        node = cluster._state.nodes.get(end.node_id)
        if node is not None and cluster._state.serves(node) and not end.kill:
            self.fail(21, f"{end.node_id} is to end while it serves")

    def _check_taken(self, node_id: str) -> None:
        """Nobody that is about to go is given a place."""
        cluster = self.world.controller.cluster if self.world else None
        node = cluster._state.nodes.get(node_id) if cluster is not None else None
        if node is not None and node.deadline_s is not None:  # it may have been let go since
            self.fail(18, f"{node_id} is given a place, and is about to go")

    def _check_wanted(self) -> None:
        """No spare is launched but for one that was lost, given up or taken, and the first."""
        kinds = Counter(kind for _, kind, _ in self.events)
        reasons = ("node_lost", "interruption_noticed", "load_failed", "stage_taken", "plan_ready")
        if kinds["spare_wanted"] > sum(kinds[kind] for kind in reasons):
            self.fail(16, f"{kinds['spare_wanted']} spares were launched for less")

    # Formations

    def dissolves(self, incarnation: str, formation_id: str) -> None:
        """A member is told to leave."""
        self._leaving.add((incarnation, formation_id))

    def dissolved(self, incarnation: str, formation_id: str) -> None:
        """It answered, or did not in time."""
        self._leaving.discard((incarnation, formation_id))

    def forms(self, form: FormPipeline) -> None:
        """Members are told to join."""
        self.note("forms", form.formation_id)
        for incarnation, formation_id in self._leaving:
            if any(member.incarnation == incarnation for member in form.members):
                self.fail(13, f"{incarnation} is to join before it has left {formation_id}")

    def restarted(self) -> None:
        """What the one before waited for, nobody waits for any more."""
        self._leaving.clear()

    # Heads and readers

    def batched(self, generations: Generations, step: Step) -> None:
        """A head chose what runs in its next step."""
        held, running = generations._held, set(step.keys)
        waits = [
            key
            for generation in held.values()
            if generation.reader is not None and generation.life is Life.LIVE
            for key in generation.keys_in_batch
            if key not in running and generation.choices[key.choice].phase is not Phase.DECODE
        ]
        for key in step.keys:
            generation = held[key.generation_id]
            unread_s = self._now_s - generation.unread_since_s
            if waits and generation.reader is None and unread_s > YIELDS_WITHIN_S:
                name = key.generation_id
                self.fail(11, f"{waits} wait behind {name}, unread for {unread_s:.2f} s")

    def sampled(self, head: str, key: SequenceKey, position: int, token: int) -> None:
        """A last stage drew a token."""
        name, epoch, choice = key.generation_id, key.epoch, key.choice
        base = self._bases.get((name, epoch), {})
        if position < base.get(choice, 0):
            self.fail(10, f"{name}: epoch {epoch} samples {position} below its base {base}")
        clients = self.world.clients if self.world is not None else []
        mine = [c for c in clients if c.request.generation_id == name]
        if mine and all(c.left_s is not None and self._now_s - c.left_s > 5.0 for c in mine):
            self.fail(8, f"{name} runs though nobody reads it")
        self._samples[name, epoch, choice, position] = token
        self._sampled_to[name, epoch, choice, head] = position + 1
        self.note("sampled", name, epoch, choice, position, token)

    def frame(self, follower: Follower, frame: Frame) -> None:
        """A head told a reader something."""
        route = follower.route
        for client in self.world.clients if self.world is not None else ():
            if client.request.generation_id == follower.request.generation_id:
                client.last_head = route.incarnation if route is not None else ""

    def _reference(self, request: GenerationRequest, choice: int) -> Answer:
        key = request.generation_id, choice
        if key not in self._references:
            self._references[key] = reference(request, choice)
        return self._references[key]

    def shown(self, client: Client) -> None:
        """A client got text."""
        if self.exact:
            for choice in range(client.request.choices):
                has, right = answer(client, choice), self._reference(client.request, choice)
                if not right.text.startswith(has.text) or right.ids[: len(has.ids)] != has.ids:
                    self.fail(1, f"{client.name}: {has} is no prefix of {right}")

    def client_ended(self, client: Client) -> None:
        """A client got its end."""
        self.note("ended", client.name, type(client.error).__name__, client.finish)
        if client.ends != 1:
            self.fail(5, f"{client.name} ended {client.ends} times")
        if client.error is not None:
            self._error(client)
            return
        counted = Usage(len(client.request.prompt_ids), sum(map(len, client.ids)))
        if client.usage != counted:
            self.fail(6, f"{client.name}: {client.usage}, but it had {counted}")
        if None in client.finish:
            self.fail(5, f"{client.name} ended with {client.finish}")
        if client.first is not None and client.first.error is None and client.first.ended:
            for choice in range(client.request.choices):
                if answer(client, choice) != answer(client.first, choice):
                    self.fail(6, f"{client.name}: another router gives {answer(client, choice)}")
        if self.exact:
            for choice in range(client.request.choices):
                has, right = answer(client, choice), self._reference(client.request, choice)
                if has != right:
                    self.fail(6, f"{client.name}: {has} is not {right}")

    def _error(self, client: Client) -> None:
        error = client.error
        self.errors[type(error).__name__] += 1
        clients = self.world.clients if self.world is not None else []
        mine = [c for c in clients if c.request.generation_id == client.request.generation_id]
        left_router = client.rejoins > 0 or len(mine) > 1
        allowed: tuple[type[Exception], ...] = (Unavailable,)
        if client.cancelled or (client.first is not None and client.first.cancelled):
            allowed += (Cancelled,)
        if left_router:
            allowed += (NotFound, Superseded)
        if left_router and not self.exact:
            allowed += (Diverged, FailedPrecondition, OutOfRange)
        if not isinstance(error, allowed):
            self.fail(5, f"{client.name} ended with {error!r}")

    # The plan

    def check_cluster(self) -> None:
        """At any time: each process is in one formation at most, each formation covers every layer
        once, each node has one seat, and the plan's pipelines are there."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return
        state = controller.cluster._state
        processes: Counter[str] = Counter()
        for pipeline in state.pipelines.values():
            if pipeline.formation is not None:
                layers = [member.layers for member in pipeline.formation.members]
                processes.update(m.incarnation for m in pipeline.formation.members)
                ends = [0, *(part.end for part in layers)]
                if [part.start for part in layers] != ends[:-1] or ends[-1] != LAYER_COUNT:
                    self.fail(14, f"{pipeline.pipeline_id} runs {layers}")
            elif pipeline.retiring:
                self.fail(14, f"{pipeline.pipeline_id} is not in the plan and serves nobody")
        wanted = state.wanted()
        seats = Counter(n for pipeline in wanted for seat in pipeline.seats for n in seat.node_ids)
        for what, counts in (("formations", processes), ("seats", seats)):
            if twice := [name for name, count in counts.items() if count > 1]:
                self.fail(14, f"{twice} in several {what}")
        wanted = [pipeline.pipeline_id for pipeline in state.wanted()]
        planned = [p.pipeline_id for _, p in state.plan.pipelines()] if state.plan else []
        if sorted(wanted) != sorted(planned):
            self.fail(14, f"the plan has {planned}, the cluster {wanted}")

    def carried_out(self) -> bool:
        """What runs is what the plan says, but for nodes that another took the place of."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return False
        state = controller.cluster._state
        if state.plan is None or state.retiring():
            return False
        for _, planned in state.plan.pipelines():
            pipeline = state.pipelines[planned.pipeline_id]
            if not pipeline.is_ready or pipeline.stalled:
                return False
            for stage, seat in zip(planned.stages, pipeline.seats, strict=True):
                if (stage.layers, stage.tp_degree) != (seat.stage.layers, seat.stage.tp_degree):
                    return False
                if stage.node_id not in ("", seat.node_id) and stage.node_id not in self.troubled:
                    return False
        return True

    def check_plan(self) -> None:
        """Faults have ceased for long enough."""
        if not self.carried_out():
            cluster = self.world.controller.cluster if self.world else None
            self.fail(15, f"{cluster and cluster.plan} is not what runs")
        if self.world is not None:
            self._check_views(self.world.controller.cluster)

    def _check_views(self, cluster: Cluster) -> None:
        """What a next plan is asked with is what there is."""
        staying = {node.node_id for node in cluster.staying()}
        seated = {stage.node_id for _, pipeline in cluster.running() for stage in pipeline.stages}
        if not cluster.busy and not cluster.lacks() and not seated <= staying:
            self.fail(15, f"{seated - staying} serve and do not stay")
        if not cluster.guests() <= staying - seated:
            self.fail(15, f"{cluster.guests()} are guests, of {staying} without {seated}")

    def check_launches(self) -> None:
        """No node was launched but for one that was lost, noticed or given up, or for a seat that
        a plan left open."""
        kinds = Counter(kind for _, kind, _ in self.events)
        reasons = sum(kinds[kind] for kind in ("node_lost", "interruption_noticed", "load_failed"))
        launches = sum(bool(p) for _, kind, p in self.events if kind == "node_launched")
        if launches > reasons + self.vacancies:
            self.fail(16, f"{launches} launches for {reasons} + {self.vacancies}")

    def has_spares(self) -> bool:
        """As many as are wanted are there, and hold a stage of the plan."""
        controller = self.world.controller if self.world else None
        if controller is None or not controller.alive:
            return False
        state, settings = controller.cluster._state, controller.cluster.settings
        stages = {seat.stage for pipeline in state.wanted() for seat in pipeline.seats}
        kept = [state.nodes[spare.node_id] for spare in controller.cluster.spares()]
        return len(kept) == settings.spares and all(self._is_warm(n, stages) for n in kept)

    @staticmethod
    def _is_warm(node: Node, stages: set[HeldStage]) -> bool:
        """It holds stages of the plan, all of one model or as many as it has room for."""
        own = {stage for stage in stages if node.stages and stage.model == node.stages[0].model}
        return bool(own) and own <= {*node.stages, *node.lacks}

    def check_spares(self) -> None:
        """Faults have ceased for long enough."""
        if self.serves() and not self.has_spares():
            cluster = self.world.controller.cluster if self.world else None
            self.fail(18, f"{cluster and cluster.spares()} are no warm spares")

    # At rest

    def check_ended(self) -> None:
        """Every client has its end, within bounded time of the last fault."""
        for client in self.world.clients if self.world else ():
            if not client.ended and client.left_s is None:
                self.fail(5, f"{client.name} has no end")

    def check_one_sequence(self) -> None:
        """Text that was shown is a prefix of what the journal holds, unless the reader was told of
        an error, or left with ids that only its router held."""
        for client in self.world.clients if self.world else ():
            durable = self._durable.get(client.request.generation_id)
            if client.error is not None or durable is None:
                continue
            for choice, ids in enumerate(client.ids):
                held = durable.ids[choice]
                if held[: len(ids)] != ids[: len(held)]:
                    self.fail(1, f"{client.name}: {ids} but the journal has {held}")

    def check_moves(self, faults: int) -> None:
        """Nothing moves but for a fault, a plan, or a client that was away."""
        for client in self.world.clients if self.world else ():
            name = client.request.generation_id
            drains = sum(kind == "handover_started" for _, kind, _ in self.events)
            planned = max(self.planned[name], drains if self.plans else 0)
            if self.grants[name] > faults + planned + client.rejoins:
                self.fail(9, f"{name}: {self.grants[name]} grants for {faults} faults")

    def check_stillness(self) -> None:
        """Nothing was lost: nobody moved, nobody asked, nobody was told of an error."""
        if moved := sum(self.grants.values()):
            self.fail(9, f"{moved} grants and {self.questions} questions, and nothing was lost")
        if self.questions or self.errors:
            self.fail(9, f"{self.questions} questions, {self.errors}, and nothing was lost")

    def serves(self) -> bool:
        """There is a plan, and every pipeline of it serves."""
        views = self.world.controller.cluster.pipelines_view() if self.world else ()
        return bool(views) and all(view.state is PipelineState.READY for view in views)

    def check_serves(self) -> None:
        """Whatever was lost, or failed to start or load, was replaced."""
        pipelines = self.world.controller.cluster.pipelines_view() if self.world else ()
        idle = [view for view in pipelines if view.state is not PipelineState.READY]
        if idle:
            self.fail(5, f"faults ceased, but this does not serve: {idle}")
        provider = self.world.provider if self.world is not None else None
        all_came = provider is not None and not provider.lost_launches
        whole = all_came and provider.failed_launches < SETTLED_LAUNCHES
        if not self.plans and len(pipelines) < (2 if whole else 1):
            self.fail(5, f"a plan of {len(pipelines)} pipelines")

    def check_rest(self) -> None:
        """Nothing is left over."""
        world = self.world
        if world is None:
            return
        for engine in world.engines:
            if engine.frozen:
                continue
            left = [n for n, h in engine.core._held.items() if h.life is not Life.FINISHED]
            if left or engine.core._readers or engine.core.open_generations:
                self.fail(8, f"{engine.name} still holds {left} {engine.core._readers}")
            lead = engine.batching.lead
            if lead is not None and (lead.scheduler.has_work or lead.scheduler.used_blocks):
                self.fail(8, f"{engine.name} still runs, in {lead.scheduler.used_blocks} blocks")
        for router in world.routers:
            if router.followings or any(s.client is not router for s in router.streams):
                self.fail(8, f"{router.name} still follows {router.followings}")
        ledger = world.controller.ledger
        ledger.tick(world.clock.now_s + 1e6)
        left = (ledger._entries, ledger._tombstones, ledger._running, ledger._abandoned)
        if any(map(len, left)):
            self.fail(8, "the journal forgets nothing")
