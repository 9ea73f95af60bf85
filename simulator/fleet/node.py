"""A node of a fleet: it registers, holds stages, joins formations; a head runs a batch.

It answers the production controller as an engine does; what it computes is the batch of
`simulator.fleet.batch`, and ids are counted instead of made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.common.errors import FailedPrecondition, ShuntError, StaleEpoch, Unavailable
from services.common.nodes import Member, NodeFacts, NodeShape, StageSpec
from services.controller.core.cluster.actions import Beat, FormPipeline, Loaded, LoadStage
from services.engine.backend import BLOCK_SIZE
from services.placement.estimate.cluster import CandidateNode, NodeClass, PlacedStage
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import stage_costs
from services.placement.estimate.step_times import StepTimes
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply, Stream
from simulator.fleet.batch import Batch, Generation
from simulator.processes.holdings import Hold, Holdings

ROOM = 2
"""Stages in a node's memory: that of its formation, and what follows."""
AGAIN_S = 0.5
NUMERICS = "fleet"
Alike = tuple[tuple[NodeClass, int, int], ...]
"""Of each stage what it runs on, its layers and its TP degree."""


class Front(Protocol):
    """Where generations come from, and go back to."""

    def ended(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """They have come to their end."""

    def broken(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """Their pipeline ended before they did."""

    def handed_on(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """They have their first token, and go on where is decoded."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What all nodes of a run have in common."""

    costs: Costs
    spread: float
    """Starts and loads take their time, more or less by this share."""
    candidate: Callable[[str], CandidateNode]
    """A node as placement sees it, by id."""
    front: Front
    _times: dict[Alike, StepTimes] = field(default_factory=dict)

    def step_times(self, stages: Sequence[PlacedStage]) -> StepTimes:
        """Of a pipeline; the same for all that are alike, so that steps that are alike are computed
        once."""
        alike = tuple((stage.node.kind.performance, stage.layers, stage.tp) for stage in stages)
        if alike not in self._times:
            layers = [stage.layers for stage in stages]
            parts = stage_costs(self.costs, stages)
            self._times[alike] = StepTimes(parts, layers, self.costs.engine)
        return self._times[alike]


@dataclass(slots=True, eq=False)
class _Place:
    formation_id: str
    members: tuple[Member, ...]
    times: StepTimes | None
    """At the head, as `batch`."""
    batch: Batch | None
    works: bool = False
    """A cycle is under way."""
    drains: bool = False


class FleetNode(Process):
    """One node's process, from the start of its machine."""

    def __init__(
        self, environment: Environment, fleet: Fleet, node_id: str, shape: NodeShape
    ) -> None:
        super().__init__(f"{node_id}/{environment.draw_id()}", environment.network)
        self.node_id = node_id
        self.sampled = self.steps = self.preempted = 0
        self.on_death: Callable[[], None] = lambda: None
        """Told when its machine ends, whoever ended it."""
        self._environment, self._fleet = environment, fleet
        self._facts = NodeFacts(node_id, self.name, self.name, 1, shape)
        self._holdings = Holdings(ROOM)
        self._place: _Place | None = None
        self._beats: Stream | None = None
        self._lost: tuple[str, ...] = ()
        self.after(self._spread(fleet.costs.engine.start_s), self._register)
        self.every(environment.settings.cluster.heartbeat_interval_s, self._beat)

    @property
    def batch(self) -> Batch | None:
        """Of a head."""
        return self._place.batch if self._place is not None else None

    @property
    def times(self) -> StepTimes | None:
        """Of a head's pipeline."""
        return self._place.times if self._place is not None else None

    @property
    def kv_positions_per_s(self) -> float:
        """Of a head's pipeline: KV cache that its network moves; 0 of no head."""
        return self.times.kv_positions_per_s() if self.times is not None else 0.0

    def _spread(self, seconds: float) -> float:
        share = self._fleet.spread
        return seconds * self._environment.random.uniform(1 - share, 1 + share)

    # The controller

    def _register(self) -> None:
        self.call(CONTROLLER, "register", (self._facts,), self._registered)

    def _registered(self, result: object) -> None:
        if isinstance(result, StaleEpoch):
            self.kill()
        elif isinstance(result, ShuntError):
            self.after(AGAIN_S, self._register)
        elif self._beats is None:
            self._beats = stream = self.open(CONTROLLER, "beats", self.name)
            stream.on_message[self] = lambda _: self._register()
            stream.on_end[self] = self._beats_ended
            self._beat()

    def _beats_ended(self, error: ShuntError | None) -> None:
        self._beats = None
        self.after(AGAIN_S, self._register)

    def _beat(self) -> None:
        if self._beats is None:
            return
        place = self._place
        beat = Beat(
            self.node_id,
            self.name,
            place.formation_id if place is not None else "",
            self.sampled,
            self._lost,
            self.steps,
            place is not None and place.works,
        )
        self._beats.send(self, beat)

    # Stages

    def hold(self, reply: Reply, load: LoadStage) -> None:
        """Reads what it lacks of the weights, while it serves."""
        stages = tuple((load.model, spec) for spec in load.stages)

        def answer(result: ShuntError | Hold) -> None:
            reply(result if isinstance(result, ShuntError) else self._loaded(load, result))

        had = frozenset((*self._holdings.held, *self._holdings.fetched))
        hold = self._holdings.begin(stages, answer)
        if hold is None:
            return
        fleet = self._fleet
        lacks = {spec for model, spec in stages if (model, spec) not in had}
        layers = sum(spec.layers.end - spec.layers.start for spec in lacks)
        rate = fleet.costs.engine.load_rate(self._candidate().kind.type_name)
        load_s = layers * fleet.costs.model.layer_bytes / rate
        load_s += fleet.costs.engine.load_s if lacks else 0.0
        self.after(self._spread(load_s), self._hold_ends, hold)

    def _hold_ends(self, hold: Hold) -> None:
        if not self._holdings.is_current(hold):
            return
        refusal = None
        try:
            for _, spec in hold.stages:
                self._room(spec)
        except FailedPrecondition as error:
            refusal = error
        self._holdings.end(hold, done=refusal is None)
        for answer in hold.answers:
            answer(refusal or hold)

    def _loaded(self, load: LoadStage, hold: Hold) -> Loaded:
        held = [spec for spec in load.stages if (load.model, spec) in hold.fitting]
        own = StageSpec(load.layers, load.tp_degree)
        beside = tuple(spec for spec in held if spec != own)
        return Loaded(self._room(own), NUMERICS, len(held) > len(beside), beside)

    def _candidate(self) -> CandidateNode:
        return self._fleet.candidate(self.node_id)

    def _room(self, spec: StageSpec) -> int:
        """Blocks of KV cache beside the stage. Raises FailedPrecondition where it has none."""
        stage = PlacedStage(self._candidate(), spec.layers.start, spec.layers.end, spec.tp_degree)
        return self._fleet.step_times((stage,)).room_positions() // BLOCK_SIZE

    def form(self, reply: Reply, form: FormPipeline, index: int) -> None:
        """Joins a formation."""
        place = self._place
        if place is not None and place.formation_id == form.formation_id:
            reply(None)
            return
        stage = form.model, form.members[index].stage
        if not self._holdings.can_form(stage):
            reply(Unavailable("not loaded"))
            return
        self._leave()
        self._holdings.use(stage)
        self._lost = ()
        times = self._times(form) if index == 0 else None
        batch = Batch(times) if times is not None else None
        self._place = _Place(form.formation_id, form.members, times, batch)
        reply(None)

    def _times(self, form: FormPipeline) -> StepTimes:
        fleet = self._fleet
        stages = [
            PlacedStage(
                fleet.candidate(one.node_id), one.layers.start, one.layers.end, one.tp_degree
            )
            for one in form.members
        ]
        return fleet.step_times(stages)

    def dissolve(self, reply: Reply, formation_id: str) -> None:
        """Leaves a formation."""
        if self._place is not None and self._place.formation_id == formation_id:
            self._leave()
        reply(None)

    def drain(self, reply: Reply, formation_id: str) -> None:
        """Seals all there is, and takes nothing any more."""
        place = self._place
        if place is None or place.batch is None or place.formation_id != formation_id:
            reply(FailedPrecondition("it leads no such formation", field="formation_id"))
            return
        place.drains = True
        reply(self._give_back(place))

    def link_lost(self, formation_id: str, lost_node_id: str) -> None:
        """A neighbour's connection closed."""
        if self._place is not None and self._place.formation_id == formation_id:
            self._lost = (lost_node_id,)
            self._leave()
            self._beat()

    def _leave(self) -> None:
        place = self._place
        if place is None:
            return
        self._place = None
        self._holdings.unuse()
        self._give_back(place)
        for member in place.members:
            self._part(member, place.formation_id, self.network.latency_s())

    def _part(self, member: Member, formation_id: str, after_s: float) -> None:
        args = (formation_id, self.node_id)
        self.network.tell(member.incarnation, "link_lost", *args, after_s=after_s)

    def kill(self) -> None:
        """As SIGKILL does: the kernel closes its connections, and readers see their streams end."""
        if not self.alive:
            return
        super().kill()
        self.on_death()
        place, self._place = self._place, None
        if place is not None:
            self._give_back(place)
            for member in place.members:
                self._part(member, place.formation_id, 0.001)

    # Generations

    def generate(self, formation_id: str, sequence: Generation) -> None:
        """A reader's; it goes back at once where this formation takes none."""
        place = self._place
        if (
            not self.alive
            or place is None
            or place.batch is None
            or place.drains
            or place.formation_id != formation_id
        ):
            self._fleet.front.broken(formation_id, (sequence,))
            return
        place.batch.add(sequence)
        self._work(place)

    def _give_back(self, place: _Place) -> int:
        """All of them; how many they were."""
        if place.batch is None:
            return 0
        sequences = place.batch.leave()
        self._fleet.front.broken(place.formation_id, sequences)
        return len(sequences)

    def _work(self, place: _Place) -> None:
        if place.works or place.batch is None:
            return
        preempted = place.batch.preempted
        took_s = place.batch.begin()
        self.preempted += place.batch.preempted - preempted
        if took_s is not None:
            place.works = True
            self.steps += 1
            self.after(took_s, self._worked, place)

    def _worked(self, place: _Place) -> None:
        place.works = False
        if place is not self._place or place.batch is None:
            return
        sampled = place.batch.sampled
        ended = place.batch.end(self.clock.now_s)
        self.sampled += place.batch.sampled - sampled
        if ended:
            self._fleet.front.ended(place.formation_id, ended)
        handed_on = place.batch.take_handed_on()
        if handed_on:
            self._fleet.front.handed_on(place.formation_id, handed_on)
        self._work(place)
