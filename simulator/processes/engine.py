"""A simulated engine: the production head core over a model of stages, steps and batches."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.common.errors import Aborted, ShuntError, Unavailable
from services.common.exchange import Checkpoint, CheckpointResult, Closed, GenerateCall, Phase
from services.common.generation import CancelReason, GenerationRequest, LayerRange
from services.common.nodes import Member, NodeFacts, NodeShape
from services.controller.core.cluster.actions import Beat, FormPipeline, Loaded
from services.engine.core.actions import (
    Action,
    DropSequence,
    NewToken,
    SequenceKey,
    SetUnread,
    StartSequence,
    StopSequence,
    Wake,
    WakeCheckpoints,
)
from services.engine.core.generations import Generations
from simulator.environment.network import Process, Reply, Stream

if TYPE_CHECKING:
    from simulator.world import World

MAX_BATCH = 2
STEP_S = 0.03
ADMIT_S = 0.02
TICK_S = 0.1


def token_of(request: GenerationRequest, choice: int, ids: Iterable[int], salt: str) -> int:
    """A token that depends on every id before it; a `salt` makes an engine inexact."""
    state = zlib.crc32(repr((request.prompt_ids, request.sampling.seed, choice, salt)).encode())
    state = zlib.crc32(array("I", ids).tobytes(), state)
    eos = request.sampling.eos_token_ids
    return eos[0] if state % 61 == 0 else 100 + state % 50


@dataclass(slots=True)
class RunningSequence:
    """A sequence in the scheduler."""

    key: SequenceKey
    request: GenerationRequest
    ids: list[int]
    prefill_steps: int
    in_flight: bool = False
    stopping: bool = False
    unread: bool = False


@dataclass(slots=True)
class Place:
    """A stage of a formation."""

    formation_id: str
    members: tuple[Member, ...]
    index: int
    step: int = 0
    stepping: bool = False
    sequences: dict[SequenceKey, RunningSequence] = field(default_factory=dict)


class SimulatedEngine(Process):
    """One node's process."""

    def __init__(self, world: World, node_id: str, shape: NodeShape) -> None:
        super().__init__(f"{node_id}/{world.draw_id()}", world.clock)
        self.world = world
        self.node_id = node_id
        self.facts = NodeFacts(node_id, self.name, self.name, 1, shape)
        self.core = Generations(self.name, world.settings.head)
        self.numerics_class = world.numerics_class()
        self.place: Place | None = None
        self.layers: LayerRange | None = None
        self.sampled = self.steps = 0
        self.wedged = False
        """It lives, but no step comes out of it."""
        self._departs_at_s: float | None = None
        self._readers: dict[int, Stream] = {}
        self._reader_count = 0
        self._journal: Stream | None = None
        self._messages = 0
        self._beats: Stream | None = None
        self._lost_node_ids: tuple[str, ...] = ()
        self._draining: list[tuple[str, Reply]] = []
        self._register()
        self.every(world.settings.cluster.heartbeat_interval_s, self._beat)
        self.every(TICK_S, self._tick)
        self.every(TICK_S / 2, self._pump_all)

    # The controller

    def _register(self) -> None:
        controller = self.world.controller
        self.call(controller, controller.register, (self.facts,), self._registered)

    def _registered(self, result: Any) -> None:
        if isinstance(result, ShuntError):
            self.after(0.2, self._register)
        elif self._beats is None:
            controller = self.world.controller
            self._beats = stream = self.world.stream(self, controller, controller.beats, self.name)
            stream.on_message[self] = self._beaten
            stream.on_end[self] = self._beats_ended
            self._beat()

    def _beats_ended(self, error: ShuntError | None) -> None:
        self._beats = None
        self.after(0.1, self._register)

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
            place is not None and bool(place.sequences),
            None if self._departs_at_s is None else self._departs_at_s - self.clock.now_s,
        )
        self._beats.send(self, beat)
        if self._journal is None:
            self._open_journal()

    def _beaten(self, error: ShuntError) -> None:
        self._register()

    def call(
        self, server: Process, serve: Callable[..., None], args: tuple[Any, ...], answer: Reply
    ) -> None:
        """A call with a deadline of a second."""
        self.world.network.call(self, server, serve, args, answer)

    def _open_journal(self) -> None:
        controller = self.world.controller
        self._journal = stream = self.world.stream(self, controller, controller.journal, self.name)
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

    def load(self, reply: Reply, layers: LayerRange) -> None:
        """Takes its time; what a formation needs is not let go."""
        if self.place is not None and self.layers != layers:
            reply(Aborted("in a formation"))
            return

        def loaded() -> None:
            if self.world.fails("load", self.world.settings.load_fails):
                reply(Unavailable("no weights"))
                return
            self.layers = layers
            reply(Loaded(64, self.numerics_class))

        self.after(self.world.load_s(), loaded)

    def form(self, reply: Reply, form: FormPipeline, index: int) -> None:
        """Joins a formation; the head checks that the others have."""
        if self.place is not None and self.place.formation_id == form.formation_id:
            reply(None)
            return
        if self.layers != form.members[index].layers:
            reply(Unavailable("not loaded"))
            return
        self._leave()
        self._lost_node_ids = ()
        self.place = Place(form.formation_id, form.members, index)
        if index == 0:
            self.act(self.core.form(form.formation_id, self.numerics_class, self.clock.now_s))
        reply(None)

    def dissolve(self, reply: Reply, formation_id: str) -> None:
        """Leaves a formation."""
        if self.place is not None and self.place.formation_id == formation_id:
            self._leave()
        reply(None)

    def link_lost(self, formation_id: str, node_id: str) -> None:
        """A neighbour's connection closed."""
        place = self.place
        if place is not None and place.formation_id == formation_id:
            self._lost_node_ids = (node_id,)
            self._leave()
            self._beat()

    def _leave(self) -> None:
        place = self.place
        if place is None:
            return
        self.place = None
        self.act(self.core.dissolve(place.formation_id, self.clock.now_s))
        for peer in self.world.engines_of(place.members):
            late_s = self.world.network.latency_s()
            peer.after(late_s, peer.link_lost, place.formation_id, self.node_id)

    def depart(self, notice_s: float) -> None:
        """SIGTERM: it tells the controller, and ends when no formation needs it any more."""
        self._departs_at_s = self.clock.now_s + notice_s
        self._beat()
        self._departing(self._departs_at_s)

    def _departing(self, departs_at_s: float) -> None:
        if self.place is not None and self.clock.now_s < departs_at_s:
            self.after(0.05, self._departing, departs_at_s)
        else:
            self._leave()
            self.after(0.2, self.world.kill_engine, self)

    def kill(self) -> None:
        super().kill()
        if self.place is not None:
            for peer in self.world.engines_of(self.place.members):
                peer.after(0.001, peer.link_lost, self.place.formation_id, self.node_id)

    def drain(self, reply: Reply, formation_id: str) -> None:
        """Seals, and answers when the journal has."""
        try:
            actions = self.core.drain(formation_id, self.clock.now_s)
        except ShuntError as error:
            reply(error)
            return
        self._draining.append((formation_id, reply))
        self.act(actions)

    # Readers

    def generate(self, stream: Stream, call: GenerateCall) -> None:
        """The stream's other end is a router."""
        self._reader_count += 1
        reader = self._reader_count
        try:
            actions = self.core.generate(reader, call, self.clock.now_s)
        except ShuntError as error:
            stream.close(self, error)
            return
        self._readers[reader] = stream
        stream.on_end[self] = lambda _: self._gone(reader)
        self.act(actions)

    def _gone(self, reader: int) -> None:
        self._readers.pop(reader, None)
        self.act(self.core.detach(reader, self.clock.now_s))

    def cancel(self, reply: Reply, name: str, choice: int | None, reason: CancelReason) -> None:
        """Ends a generation or a choice."""
        self.act(self.core.cancel(name, choice, reason, self.clock.now_s))
        reply(None)

    def client_gone(self, reply: Reply, name: str, epoch: int, resumable: bool) -> None:
        """A reader has no client any more."""
        self.act(self.core.client_gone(name, epoch, resumable, self.clock.now_s))
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

    def _pump_all(self) -> None:
        for reader in list(self._readers):
            self._pump(reader)
        self._checkpoint()

    def _tick(self) -> None:
        self.act(self.core.tick(self.clock.now_s))
        for formation_id, reply in list(self._draining):
            sealed = self.core.drained(formation_id, self.clock.now_s)
            if sealed is not None:
                self._draining.remove((formation_id, reply))
                reply(sealed)

    # Steps

    def act(self, actions: list[Action]) -> None:
        """Does what the core asks."""
        for action in actions:
            if isinstance(action, StartSequence):
                if self.place is not None:
                    steps = 2 + len(action.output_ids) // 8
                    self.place.sequences[action.key] = RunningSequence(
                        action.key, action.request, list(action.output_ids), steps
                    )
                    self.after(ADMIT_S, self._step)
            elif isinstance(action, StopSequence):
                self._stop(action.key)
            elif isinstance(action, SetUnread):
                if self.place is not None and action.key in self.place.sequences:
                    self.place.sequences[action.key].unread = action.unread
            elif isinstance(action, DropSequence):
                continue  # the place is gone, and its sequences with it
            elif isinstance(action, Wake):
                self._pump(action.reader_id)
            elif isinstance(action, WakeCheckpoints):
                self._checkpoint()

    def _stop(self, key: SequenceKey) -> None:
        sequence = self.place.sequences.get(key) if self.place is not None else None
        if sequence is not None and sequence.in_flight:
            sequence.stopping = True
            return
        if self.place is not None:
            self.place.sequences.pop(key, None)
        self.after(0.0, self._stopped, key)

    def _stopped(self, key: SequenceKey) -> None:
        self.act(self.core.sequence_stopped(key, self.clock.now_s))

    def _step(self) -> None:
        place = self.place
        if place is None or place.stepping:
            return
        waiting = [s for s in place.sequences.values() if not s.stopping]
        batch = sorted(waiting, key=lambda s: s.unread)[:MAX_BATCH]
        if not batch:
            return
        self.world.monitor.batched(self, batch)
        place.stepping = True
        self.steps += 1
        for sequence in batch:
            sequence.in_flight = True
            phase = Phase.PREFILL if sequence.prefill_steps else Phase.DECODE
            self.core.sequence_phase(sequence.key, phase)
        self.after(STEP_S, self._stepped, place, batch)

    def _stepped(self, place: Place, batch: list[RunningSequence]) -> None:
        if place is not self.place:
            return
        members = self.world.engines_of(place.members)
        if any(peer.frozen or peer.wedged for peer in members):
            self.after(STEP_S, self._stepped, place, batch)
            return
        if not all(self._carried_by(place, peer) for peer in members):
            lost = next(peer for peer in members if not self._carried_by(place, peer))
            self.link_lost(place.formation_id, lost.node_id)
            return
        place.step += 1
        place.stepping = False
        tokens = []
        for sequence in batch:
            sequence.in_flight = False
            if sequence.prefill_steps:
                sequence.prefill_steps -= 1
            else:
                tokens.append(self._sample(sequence))
        self.act(self.core.stepped(place.step, tokens, self.clock.now_s))
        for sequence in batch:
            if sequence.stopping:
                place.sequences.pop(sequence.key, None)
                self._stopped(sequence.key)
        self._step()

    def _carried_by(self, place: Place, peer: SimulatedEngine) -> bool:
        if not peer.alive or not self.world.network.reaches(self, peer):
            return False
        return peer.place is not None and peer.place.formation_id == place.formation_id

    def _sample(self, sequence: RunningSequence) -> NewToken:
        key = sequence.key
        salt = "" if self.world.exact else f"{key.epoch} {self.name}"
        token = token_of(sequence.request, key.choice, sequence.ids, salt)
        position = len(sequence.ids)
        sequence.ids.append(token)
        self.sampled += 1
        self.world.monitor.sampled(key, position, token)
        return NewToken(key, position, token)
