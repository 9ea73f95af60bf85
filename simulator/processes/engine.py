"""A simulated engine: the production cores of a head over a model of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import FailedPrecondition, ShuntError, StaleEpoch, Unavailable
from services.common.exchange import (
    Checkpoint,
    CheckpointResult,
    Closed,
    GenerateCall,
    KvSource,
    Left,
    PrefixNews,
)
from services.common.generation import CancelReason, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape, StageSpec
from services.common.notices import NoticeKind
from services.common.prefix import owner_of
from services.controller.core.cluster.actions import Beat, FormPipeline, Loaded, LoadStage
from services.engine.core.actions import Action, SequenceKey
from services.engine.core.batching import Batching, Due
from services.engine.core.contents import Contents
from services.engine.core.copying import Copying, Heir
from services.engine.core.generations import Generations
from services.engine.core.given_up import GivenUp
from services.engine.core.incoming import KvFetch, NamedBlock, names_of
from services.engine.core.lead import Leaving, lead_of
from services.engine.core.prefix_fetching import PrefixFetching
from services.engine.core.scheduler import Step
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply, Stream
from simulator.environment.settings import LAYER_BYTES
from simulator.processes.holdings import Hold, Holdings, Stage
from simulator.processes.stages import (
    BLOCK_BYTES,
    SimulatedStages,
    facts_of,
    rounded_block,
)

TICK_S = 0.1
FETCH_S = 0.1
LATE_S = 0.4
ROUND_S = 0.05
ROUND_BLOCKS = 3
"""Blocks that go ahead together."""
ROUND_FAILS = 0.15
"""Share of the rounds that some stage does not answer."""
AT_BLOCK_ENDS_S = 0.3
ROUNDED = 0.3
"""Share of those blocks that come rounded, of what may."""
PROBE_S = 0.5


@dataclass(slots=True, eq=False)
class Place:
    """This process's place in a formation."""

    formation_id: str
    members: tuple[Member, ...]
    index: int
    stages: SimulatedStages | None = None
    """At the head, which computes for all."""
    steps: list[Step] = field(default_factory=list)
    """In flight."""
    free_s: float = 0.0
    """When the first stage takes the next step."""
    probing: bool = False
    given_up: GivenUp = field(default_factory=GivenUp)
    """Of what stages were asked to do to blocks."""
    contents: Contents = field(default_factory=Contents)
    """What is known of the caches."""


@dataclass(slots=True, eq=False)
class Draining:
    """A drain that is not answered yet."""

    formation_id: str
    running: frozenset[str]
    reply: Reply
    kept: bool | None = None
    """What it sealed is kept; None: nobody was asked to."""


class HeadMonitor(Protocol):
    """Sees what a head runs and what comes of it."""

    def batched(self, batching: Batching, step: Step) -> None: ...
    def unanswered(self, batching: Batching, fetch: KvFetch) -> None: ...
    def keeps(self, batching: Batching, leaving: Leaving) -> None: ...
    def kept(self, batching: Batching, leaving: Leaving) -> None: ...
    def kept_busy(self, formation_id: str, leaving: Leaving) -> None: ...
    def given_up(self, formation_id: str, blocks: Sequence[NamedBlock]) -> None: ...
    def rests(self, batching: Batching) -> None: ...
    def holds(self, name: bytes, held: bytes, *, in_place: bool) -> None: ...
    def found(
        self, batching: Batching, key: SequenceKey, first: int, held: Sequence[bytes]
    ) -> None: ...
    def sampled(self, head: str, key: SequenceKey, position: int, token: int) -> None: ...


class SimulatedEngine(Process):
    """One node's process."""

    def __init__(
        self, environment: Environment, monitor: HeadMonitor, node_id: str, shape: NodeShape
    ) -> None:
        super().__init__(f"{node_id}/{environment.draw_id()}", environment.network)
        random, settings = environment.random, environment.settings
        self.environment = environment
        self.monitor = monitor
        self.node_id = node_id
        self.facts = NodeFacts(node_id, self.name, self.name, 1, shape)
        self.core = Generations(self.name, settings.head)
        self.batching = Batching(self.core)
        self.numerics_class = "other" if random.random() < settings.other_class else "sim"
        self.place: Place | None = None
        self.holdings = Holdings(settings.room)
        self.sampled = self.steps = 0
        self.wedged = False
        """It lives, but no step comes out of it."""
        self._departs_at_s: float | None = None
        self._notice: NoticeKind | None = None
        self._readers: dict[int, Stream] = {}
        self._reader_count = 0
        self._journal: Stream | None = None
        self._messages = 0
        self._beats: Stream | None = None
        self._lost_node_ids: tuple[str, ...] = ()
        self._draining: list[Draining] = []
        self._left: Place | None = None
        """Where it was the head last: its caches stay for the next formation of their size."""
        self._offered: dict[bytes, bytes] = {}
        """Blocks by name, that are kept for other pipelines."""
        self._went: tuple[Place, Copying] | None = None
        """What went ahead last, and of which place."""
        self._beats_every_s = settings.cluster.heartbeat_interval_s
        """As it was told last."""
        self._beats_at_s = 0.0
        self._register()
        self.every(settings.cluster.heartbeat_interval_s, self._beat_if_due)
        self.every(TICK_S, self._tick)
        self.every(settings.head.checkpoint_interval_s, self._checkpoint)

    # The controller

    def _register(self) -> None:
        self.call(CONTROLLER, "register", (self.facts,), self._registered)

    def _registered(self, result: Any) -> None:
        if isinstance(result, StaleEpoch):
            self.kill()  # a newer process has its name
        elif isinstance(result, ShuntError):
            self.after(0.2, self._register)
        elif self._beats is None:
            self._beats_every_s = result
            self._beats = stream = self.open(CONTROLLER, "beats", self.name)
            stream.on_message[self] = self._beaten
            stream.on_end[self] = self._beats_ended
            self._beat()

    def _beats_ended(self, error: ShuntError | None) -> None:
        self._beats = None
        self.after(0.1, self._register)

    def _beat_if_due(self) -> None:
        if self.clock.now_s >= self._beats_at_s:
            # The look that is nearest: looks are as far apart as regular beats.
            regular_s = self.environment.settings.cluster.heartbeat_interval_s
            self._beats_at_s = self.clock.now_s + self._beats_every_s - regular_s / 2
            self._beat()

    def _beat(self) -> None:
        if self._beats is None:
            return
        place = self.place
        beat = Beat(
            self.node_id,
            self.name,
            place.formation_id if place is not None else "",
            self.sampled,
            self._lost_node_ids,
            self.steps,
            self.batching.has_work,
            None if self._departs_at_s is None else self._departs_at_s - self.clock.now_s,
            self._notice,
        )
        self._beats.send(self, beat)
        if self._journal is None:
            self._open_journal()

    def _beaten(self, error: ShuntError) -> None:
        self._register()

    def _open_journal(self) -> None:
        self._journal = stream = self.open(CONTROLLER, "journal", self.name)
        stream.on_message[self] = self._journaled
        stream.on_end[self] = self._journal_ended
        self.core.checkpoint_stream_opened()

    def _journal_ended(self, error: ShuntError | None) -> None:
        self._journal = None

    def _journaled(self, answer: tuple[int, CheckpointResult]) -> None:
        message, result = answer
        self.act(self.core.checkpoint_results(message, (result,), self.clock.now_s))

    def _checkpoint(self) -> None:
        if self._journal is None:
            return
        self._messages += 1
        checkpoints: tuple[Checkpoint, ...]
        while checkpoints := self.core.take_checkpoints(self._messages, self.clock.now_s):
            self._journal.post(self, (self._messages, checkpoints))
            self._messages += 1

    # Stages

    def hold(self, reply: Reply, load: LoadStage) -> None:
        """Takes its time, while it serves; another one takes its place."""
        stages = tuple((load.model, spec) for spec in load.stages)

        def answer(result: ShuntError | Hold) -> None:
            reply(result if isinstance(result, ShuntError) else self._loaded(load, result))

        hold = self.holdings.begin(stages, answer)
        if hold is not None:
            environment = self.environment
            load_s = environment.settings.load_s * (0.5 + environment.random.random())
            has_all = self.holdings.held.issuperset(stages)
            self.after(0.0 if has_all else load_s, self._hold_ends, hold)

    def _loaded(self, load: LoadStage, hold: Hold) -> Loaded:
        held = [spec for spec in load.stages if (load.model, spec) in hold.fitting]
        beside = tuple(one for one in held if one != StageSpec(load.layers, load.tp_degree))
        kv_blocks = self.environment.settings.kv_blocks
        return Loaded(kv_blocks, self.numerics_class, len(held) > len(beside), beside)

    def _hold_ends(self, hold: Hold) -> None:
        if not self.holdings.is_current(hold):
            return
        refusal = self._refusal(hold.stages)
        self.holdings.end(hold, done=refusal is None)
        for answer in hold.answers:
            answer(refusal or hold)

    def _refusal(self, stages: Sequence[Stage]) -> ShuntError | None:
        """Why they cannot be loaded, for good or this time."""
        most = max((spec.layers.end - spec.layers.start for _, spec in stages), default=0)
        if most * LAYER_BYTES > self.facts.shape.memory_bytes:
            return FailedPrecondition("more layers than memory")
        if any(spec.tp_degree > self.facts.shape.device_count for _, spec in stages):
            return FailedPrecondition("more ranks than devices")
        environment = self.environment
        fails = environment.fails("load", environment.settings.load_fails)
        return Unavailable("no weights") if fails else None

    def form(self, reply: Reply, form: FormPipeline, index: int) -> None:
        """Joins a formation; the head checks that the others have."""
        if self.place is not None and self.place.formation_id == form.formation_id:
            reply(None)
            return
        stage = form.model, form.members[index].stage
        if not self.holdings.can_form(stage):
            reply(Unavailable("not loaded"))
            return
        self._leave()
        self.holdings.use(stage)
        self._lost_node_ids = ()
        self.place = Place(form.formation_id, form.members, index)
        if index == 0:
            self._head(self.place, form.model, form.kv_blocks)
        reply(None)

    def _head(self, place: Place, model: ModelRef, kv_blocks: int) -> None:
        settings = self.environment.settings
        left = self._left
        if left is not None and left.stages is not None and left.stages.kv_blocks == kv_blocks:
            place.stages, place.contents = left.stages, left.contents
            place.stages.begin_again()
        else:
            place.stages = SimulatedStages(kv_blocks, "" if settings.exact else self.name)
        self._left = place
        lead = lead_of(
            place.formation_id,
            model,
            facts_of(place.members[0], self.numerics_class),
            stages=len(place.members),
            kv_blocks=kv_blocks,
            settings=settings.scheduler,
            progress_s=settings.progress_s,
            limit_bytes=MAX_MESSAGE_BYTES,
            places=place.contents.places,
            prefixes=PrefixFetching(settings.prefixes, BLOCK_BYTES),
        )
        self._do(self.batching.form(lead, self.numerics_class, self.clock.now_s))

    def dissolve(self, reply: Reply, formation_id: str) -> None:
        """Leaves a formation."""
        if self.place is not None and self.place.formation_id == formation_id:
            self._leave()
        reply(None)

    def link_lost(self, formation_id: str, *lost_node_ids: str) -> None:
        """A neighbour's connection closed, or no step comes back."""
        place = self.place
        if place is not None and place.formation_id == formation_id:
            self._lost_node_ids = lost_node_ids
            self._leave()
            self._beat()

    def describe(self, reply: Reply) -> None:
        """It answers, whatever it does."""
        reply(self.name)

    def _give_up_stuck(self, place: Place) -> None:
        """A step does not come back: ends the formation, knowing who does not answer."""
        place.probing = True
        silent = {m.incarnation: m.node_id for m in place.members if m.incarnation != self.name}

        def answered(name: Any) -> None:
            if not isinstance(name, ShuntError):
                silent.pop(name, None)

        for incarnation in silent:
            self.call(incarnation, "describe", (), answered, PROBE_S)

        def asked() -> None:
            self.link_lost(place.formation_id, *silent.values())

        self.after(PROBE_S, asked)

    def _leave(self) -> None:
        place = self.place
        if place is None:
            return
        self.place = None
        self.holdings.unuse()
        self._do(self.batching.dissolve(place.formation_id, self.clock.now_s))
        for member in place.members:
            self._part(member, place.formation_id, self.network.latency_s())

    def _part(self, member: Member, formation_id: str, after_s: float) -> None:
        """A neighbour hears that the connection closed."""
        args = (formation_id, self.node_id)
        self.network.tell(member.incarnation, "link_lost", *args, after_s=after_s)

    def advise(self) -> None:
        """It hears that its node is likely to be taken away, and says so."""
        self._notice = NoticeKind.REBALANCE
        self._beat()

    def depart(self, notice_s: float, kind: NoticeKind | None = None) -> None:
        """SIGTERM, or what its machine is told: it tells the controller, and ends when no formation
        needs it any more."""
        self._notice = kind
        self._departs_at_s = self.clock.now_s + notice_s
        self._beat()
        self._departing(self._departs_at_s)

    def _departing(self, departs_at_s: float) -> None:
        if self.place is not None and self.clock.now_s < departs_at_s:
            self.after(0.05, self._departing, departs_at_s)
        else:
            self._leave()
            self.after(0.2, self.kill)

    def kill(self) -> None:
        super().kill()
        if self.place is not None:
            for member in self.place.members:
                self._part(member, self.place.formation_id, 0.001)

    def drain(self, reply: Reply, formation_id: str, running: frozenset[str] = frozenset()) -> None:
        """Seals all but what goes on `running`, and answers when the journal has."""
        if self.environment.settings.kv_travels and not running:
            self._drain_at_block_ends(reply, formation_id, self.clock.now_s + AT_BLOCK_ENDS_S)
            return
        try:
            actions = self.core.drain(formation_id, self.clock.now_s, running)
        except ShuntError as error:
            reply(error)
            return
        self._draining.append(Draining(formation_id, running, reply))
        self.act(actions)

    def _drain_at_block_ends(self, reply: Reply, formation_id: str, until_s: float) -> None:
        late = self.batching.within_blocks() if self.clock.now_s < until_s else frozenset()
        sealed = self.core.sealed_count
        try:
            actions = self.core.drain(formation_id, self.clock.now_s, late)
        except ShuntError as error:
            reply(error)
            return
        self.act(actions)
        if late:
            if self.core.sealed_count > sealed:
                self._keep(formation_id)
            step_s = self.environment.settings.step_s
            self.after(step_s, self._drain_at_block_ends, reply, formation_id, until_s)
        else:
            self._draining.append(Draining(formation_id, late, reply))

    def copy(
        self,
        reply: Reply,
        formation_id: str,
        heirs: Sequence[Heir],
        limit_s: float,
        follows: bool = False,
    ) -> None:
        """Has blocks go ahead, in rounds, until another would find as much or the time is over;
        where it `follows`, until they run here no more."""
        if self.place is None or self.place.formation_id != formation_id:
            reply(FailedPrecondition("not the head of this formation"))
            return
        until_s = self.clock.now_s + limit_s
        copying = Copying(heirs, follows=follows)
        self._went = self.place, copying
        self._go_ahead(self.place, copying, until_s, reply, follows)

    def _go_ahead(
        self, place: Place, copying: Copying, until_s: float, reply: Reply, follows: bool
    ) -> None:
        lent = ExitStack()
        going = lent.enter_context(self.batching.ahead(copying, ROUND_BLOCKS))
        if going is None or place is not self.place or self.clock.now_s >= until_s:
            lent.close()
            goes_on = place is self.place and self.clock.now_s < until_s and copying.taken
            if follows and goes_on and self.core.running(copying.generation_ids):
                self.after(ROUND_S, self._go_ahead, place, copying, until_s, reply, follows)
            else:
                reply(None)
            return
        ahead, leaving = going
        self.monitor.keeps(self.batching, leaving)
        random = self.environment.random

        def over() -> None:
            if place is not self.place or place.stages is None:
                lent.close()
                reply(None)
            elif not leaving.computed:
                self.after(ROUND_S, over)
            else:
                kept = self._kept(place, leaving, self.environment.kept_blocks)
                self._give_back(lent, place)
                there = set(ahead.names) if kept else set()
                copying.copied(ahead, there)
                self._into_caches(place, copying, copying.for_caches(ahead, there))
                self._go_ahead(place, copying, until_s, reply, follows)

        self.after(ROUND_S * random.random(), over)

    def _kept(self, place: Place, leaving: Leaving, kept: dict[bytes, bytes]) -> bool:
        """Every stage keeps them; False: some stage does not answer, and may be at it yet."""
        random = self.environment.random
        leaving.busy = random.random() <= ROUND_FAILS
        self.monitor.kept(self.batching, leaving)
        if leaving.busy:
            self.monitor.kept_busy(place.formation_id, leaving)
            self.after(LATE_S * random.random(), self._copy, place, leaving, kept)
            self.after(LATE_S * random.random(), self._end_keeping, place, leaving)
        else:
            self._copy(place, leaving, kept)
        return not leaving.busy

    def offer(self, reply: Reply, formation_id: str, names: Sequence[bytes], keep_s: float) -> None:
        """Keeps for another pipeline what the prefix cache has of these, and says how many."""
        place, lent = self.place, ExitStack()
        if place is None or place.formation_id != formation_id:
            reply(FailedPrecondition("not the head of this formation"))
            return
        leaving = lent.enter_context(self.batching.offered(names))
        self.monitor.keeps(self.batching, leaving)

        def over() -> None:
            if place is not self.place or place.stages is None:
                lent.close()
                reply(FailedPrecondition("the formation is over"))
            elif not leaving.computed:
                self.after(ROUND_S, over)
            else:
                kept = self._kept(place, leaving, self._offered)
                self._give_back(lent, place)
                self.after(keep_s, self._withdraw, [name for name, _ in leaving.blocks])
                reply(len(leaving.blocks) if kept else 0)

        self.after(ROUND_S * self.environment.random.random(), over)

    def _withdraw(self, names: Sequence[bytes]) -> None:
        for name in names:
            self._offered.pop(name, None)

    def read(self, reply: Reply, names: Sequence[bytes]) -> None:
        """What is kept for others of these."""
        reply({name: self._offered[name] for name in names if name in self._offered})

    def _into_caches(
        self,
        place: Place,
        copying: Copying,
        chains: Mapping[int, Mapping[SequenceKey, Sequence[bytes]]],
    ) -> None:
        for heir, of_heir in chains.items():
            one = copying.heirs[heir]
            if not one.formation_id:
                continue  # it has no caches yet
            names = tuple(map(tuple, of_heir.values()))
            args = (one.formation_id, KvSource(place.formation_id, ()), names)
            self.call(one.members[0].incarnation, "take_ahead", args, lambda _: None)

    def _give_back(self, lent: ExitStack, place: Place) -> None:
        """What had no room beside what was lent may run."""
        lent.close()
        if place is self.place:
            self._do(self.batching.given_back(self.clock.now_s))

    def _copy(self, place: Place, leaving: Leaving, kept: dict[bytes, bytes]) -> None:
        """What stages keep then is what blocks hold then; behind the end of a formation nothing."""
        if place is self.place and leaving.number not in place.given_up:
            self._put(place, leaving.blocks, kept)

    def _put(self, place: Place, blocks: Sequence[NamedBlock], kept: dict[bytes, bytes]) -> None:
        """What is kept already is not copied again."""
        if place.stages is None:
            return
        for name, block in blocks:
            held = place.stages.block(block)
            self.monitor.holds(name, held, in_place=False)
            kept.setdefault(name, held)
        place.contents.note(blocks)

    def _end_keeping(self, place: Place, leaving: Leaving) -> None:
        if place is self.place:
            place.given_up.add(leaving.number)
            leaving.busy = False
            self.monitor.given_up(place.formation_id, leaving.blocks)
            self._do(self.batching.left(leaving, self.clock.now_s))

    def take_ahead(
        self,
        reply: Reply,
        formation_id: str,
        source: KvSource,
        chains: Sequence[Sequence[bytes]],
    ) -> None:
        """Has blocks of what is to come lie in the caches."""
        if self.place is None or self.place.formation_id != formation_id:
            reply(FailedPrecondition("not the head of this formation"))
            return
        _, due = self.batching.take_ahead(chains, source)
        self._do(due)
        reply(None)

    # Readers

    def generate(self, stream: Stream, call: GenerateCall) -> None:
        """The stream's other end is a router."""
        self._reader_count += 1
        reader = self._reader_count
        try:
            due = self.batching.generate(reader, call, self.clock.now_s)
        except ShuntError as error:
            stream.close(self, error)
            return
        self._readers[reader] = stream
        stream.on_end[self] = lambda _: self._gone(reader)
        self._do(due)

    def _gone(self, reader: int) -> None:
        self._readers.pop(reader, None)
        self.act(self.core.detach(reader, self.clock.now_s))

    def prefixes(self, formation_id: str, position: int) -> tuple[PrefixNews | None, int]:
        """What a router has not been told of what is cached, and where it is then."""
        lead = self.batching.lead
        if lead is None or lead.formation_id != formation_id:
            return None, position
        return lead.scheduler.blocks.log.since(position)

    def cancel(self, reply: Reply, name: str, choice: int | None, reason: CancelReason) -> None:
        """Ends a generation or a choice."""
        self.act(self.core.cancel(name, choice, reason, self.clock.now_s))
        reply(None)

    def client_gone(self, reply: Reply, left: Left) -> None:
        """A reader has no client any more."""
        self.act(self.core.client_gone(left, self.clock.now_s))
        reply(None)

    def _pump(self, reader: int) -> None:
        stream = self._readers.get(reader)
        while stream is not None:
            frame = self.core.next_frame(reader, self.clock.now_s)
            if frame is None:
                return
            stream.send(self, frame)
            if isinstance(frame, Closed):
                stream.close(self)
                del self._readers[reader]
                return

    def _tick(self) -> None:
        now_s = self.clock.now_s
        self.act(self.core.tick(now_s))
        self.monitor.rests(self.batching)
        for reader in list(self._readers):
            if self.core.is_silent(reader, now_s):
                self._pump(reader)
        if self.batching.overdue(now_s) and self.place is not None and not self.place.probing:
            self._give_up_stuck(self.place)
        for one in list(self._draining):
            if self.environment.settings.kv_travels and one.kept is None:
                self._keep_sealed(one)
            sealed = self.core.drained(one.formation_id, self.clock.now_s, one.running)
            if sealed is not None and one.kept is not False:
                self._draining.remove(one)
                one.reply(sealed)

    # Steps

    def act(self, actions: list[Action]) -> None:
        """Does what the core asks."""
        self._do(self.batching.act(actions, self.clock.now_s))

    def _do(self, due: Due) -> None:
        for leaving in due.keeps:
            self.monitor.keeps(self.batching, leaving)
            self.after(
                FETCH_S * self.environment.random.random(), self._keep_on, self.place, leaving
            )
        for step in due.steps:
            self._submit(step)
        for fetch in due.fetches:
            begin = self._fetch if fetch.holder is None else self._fetch_prefix
            self.after(FETCH_S * self.environment.random.random(), begin, self.place, fetch)
        if due.checkpoints:
            self._checkpoint()
        for reader in due.readers:
            self._pump(reader)

    def _keep_on(self, place: Place | None, leaving: Leaving) -> None:
        """What is computed of one that is handed on; there is not always room for all of it."""
        if place is None or place is not self.place or place.stages is None:
            return
        if not leaving.computed:
            self.after(ROUND_S, self._keep_on, place, leaving)
            return
        self.monitor.kept(self.batching, leaving)
        random = self.environment.random
        room = random.choice((len(leaving.blocks), random.randrange(len(leaving.blocks) + 1)))
        self._put(place, leaving.blocks[:room], self.environment.kept_blocks)
        leaving.busy = False
        self._do(self.batching.left(leaving, self.clock.now_s))

    def _keep_sealed(self, draining: Draining) -> None:
        """When all of them are."""
        if self.core.sealing(draining.formation_id):
            return

        def over() -> None:
            draining.kept = True

        draining.kept = False
        self._keep(draining.formation_id, over)

    def _keep(self, formation_id: str, over: Callable[[], None] = lambda: None) -> None:
        """What is computed of what a drain has sealed by now; it takes a moment."""
        place, lent = self.place, ExitStack()
        if place is None or place.formation_id != formation_id:
            over()
            return
        sealed = self.batching.sealed(())
        leaving = lent.enter_context(self.batching.kept(sealed))
        self.monitor.keeps(self.batching, leaving)

        def keep() -> None:
            if place is self.place and not leaving.computed:
                self.after(self.environment.settings.step_s, keep)
                return
            if place is self.place:
                self.monitor.kept(self.batching, leaving)
                self._copy(place, leaving, self.environment.kept_blocks)
            self._give_back(lent, place)
            if self._went is not None and self._went[0] is self.place is place:
                copying = self._went[1]
                rest = copying.rest({one.key: names_of(one) for one in sealed})
                self._into_caches(place, copying, rest)
            over()

        keep()

    def _fetch_prefix(self, place: Place | None, fetch: KvFetch) -> None:
        """Its holder is asked, and whoever keeps what it offers."""
        holder, began_s, limit_s = fetch.holder, self.clock.now_s, fetch.source.fetch_s
        if holder is None:
            return

        def offered(count: Any) -> None:
            if isinstance(count, ShuntError) or not count:
                came({})
            else:
                left_s = max(0.0, began_s + limit_s - self.clock.now_s)
                self.call(holder.address, "read", (fetch.names[:count],), came, left_s)

        def came(kept: Any) -> None:
            there = {} if isinstance(kept, ShuntError) else kept
            self.environment.prefixes["came" if there else "missed"] += 1
            self._fetch(place, fetch, there, self.clock.now_s - began_s)

        args = (holder.formation_id, fetch.names, limit_s)
        self.call(holder.address, "offer", args, offered, limit_s)

    def _fetch(
        self,
        place: Place | None,
        fetch: KvFetch,
        kept: Mapping[bytes, bytes] | None = None,
        took_s: float = 0.0,
    ) -> None:
        """As many from the first on as come; some stages do not answer, and write all the same."""
        random = self.environment.random
        kept = self.environment.kept_blocks if kept is None else kept
        if place is None or place is not self.place or place.stages is None:
            return
        fault = random.choice(("", "", "", "short", "silent"))
        most = random.randrange(len(fetch.blocks) + 1) if fault == "short" else len(fetch.blocks)
        there = list(
            takewhile(lambda one: one in place.contents or one[0] in kept, fetch.blocks[:most])
        )
        if fault == "silent":
            late_s = LATE_S * random.random()
            self.after(late_s, self._fill_late, place, fetch.number, there, kept)
            self.after(LATE_S * random.random(), self._end_fetch, place, fetch)
            self.monitor.unanswered(self.batching, fetch)
            self._do(self.batching.fetched(fetch, None, self.clock.now_s))
            return
        rounded = self._fill(place, fetch.number, there, kept)
        size_bytes, now_s = len(there) * BLOCK_BYTES, self.clock.now_s
        due = self.batching.fetched(fetch, len(there), now_s, size_bytes, took_s, rounded=rounded)
        self._do(due)

    def _fill_late(
        self, place: Place, number: int, blocks: list[NamedBlock], kept: Mapping[bytes, bytes]
    ) -> None:
        """By then nobody waits for it."""
        self._fill(place, number, blocks, kept)

    def _end_fetch(self, place: Place, fetch: KvFetch) -> None:
        """The stages say that they write no more."""
        if place is self.place:
            place.given_up.add(fetch.number)
            self.monitor.given_up(place.formation_id, fetch.blocks)
            self._do(self.batching.ended(fetch, self.clock.now_s))

    def _fill(
        self, place: Place, number: int, blocks: list[NamedBlock], kept: Mapping[bytes, bytes]
    ) -> bool:
        """What lies in its place is as it is; whether something was rounded, of what may be. Behind
        the end of a formation nothing is written: the caches may be the next one's."""
        if place is not self.place or place.stages is None or number in place.given_up:
            return False
        before = any(map(place.contents.is_rounded, blocks))
        narrow = {
            name
            for name, _ in blocks
            if owner_of(name) and self.environment.random.random() < ROUNDED
        }
        for name, block in blocks:
            if (name, block) in place.contents:
                self.monitor.holds(name, place.stages.block(block), in_place=True)
                narrow.discard(name)
                continue
            place.stages.fill(block, rounded_block(kept[name]) if name in narrow else kept[name])
            place.contents.written([block])
            if name in narrow:
                place.contents.note_rounded([block])
        return before or bool(narrow)

    def _submit(self, step: Step) -> None:
        """Each stage works one step at a time, all in the same order."""
        place, now_s = self.place, self.clock.now_s
        if place is None:
            return
        self.monitor.batched(self.batching, step)
        place.contents.stepped(step.batch.steps)
        self.steps += 1
        place.steps.append(step)
        begins_s = max(now_s, place.free_s)
        step_s = self.environment.settings.step_s
        place.free_s = begins_s + step_s / len(place.members)
        self.after(begins_s + step_s - now_s, self._came_back, place)

    def _came_back(self, place: Place) -> None:
        """The oldest step in flight, unless a stage holds it up."""
        if place is not self.place or place.stages is None:
            return
        members = [self.network.process(m.incarnation, SimulatedEngine) for m in place.members]
        if any(peer.frozen or peer.wedged for peer in members):
            self.after(self.environment.settings.step_s, self._came_back, place)
            return
        if not all(self._carried_by(place, peer) for peer in members):
            lost = next(peer for peer in members if not self._carried_by(place, peer))
            self.link_lost(place.formation_id, lost.node_id)
            return
        step = place.steps.pop(0)
        sampled = place.stages.forward(step, partial(self.monitor.found, self.batching))
        keys = {entry.slot: key for key, entry in zip(step.keys, step.batch.steps, strict=True)}
        for token in sampled:
            self.monitor.sampled(self.name, keys[token.slot], token.position, token.token_id)
        self.sampled += len(sampled)
        self._do(self.batching.came_back(step.number, sampled, self.clock.now_s))

    def _carried_by(self, place: Place, peer: SimulatedEngine) -> bool:
        if not peer.alive or not self.network.reaches(self, peer):
            return False
        return peer.place is not None and peer.place.formation_id == place.formation_id
