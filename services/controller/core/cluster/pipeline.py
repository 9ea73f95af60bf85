"""A pipeline as the cluster core holds it: its seats, the formation that runs, its hand-over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from sys import float_info

from services.common.generation import ModelRef
from services.common.nodes import Member, NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import PipelineState
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.handover import Handover
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import PlannedPipeline, PlannedStage
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.transitions import Noun, need


class FormationState(StrEnum):
    """A formation's life; that it is drained is its hand-over's state."""

    FORMING = "forming"
    READY = "ready"


@dataclass(slots=True)
class Formation:
    """A pipeline's members for as long as all of them live."""

    formation_id: str
    members: tuple[Member, ...]
    kv_blocks: int
    state: FormationState = FormationState.FORMING
    numerics_class: str = ""
    """Of its members' stages; they may hold others by now."""
    kv_block_bytes: int | None = 0
    """Of a full block of all its layers, once it stands; 0: its blocks go nowhere. None: it stood
    before that was noted."""

    @property
    def forming(self) -> bool:
        return self.state is FormationState.FORMING

    @property
    def head(self) -> Member:
        return self.members[0]

    def stand(self, kv_block_bytes: int) -> None:
        """All members do."""
        need(self.forming, f"{self.formation_id} stands already")
        self.state, self.kv_block_bytes = FormationState.READY, kv_block_bytes


@dataclass(slots=True)
class Seat(Noun):
    """A stage of a pipeline, who runs it, and who is to run it next. Only its own methods change
    it."""

    planned: PlannedStage
    stage: HeldStage
    """What whoever sits here holds."""
    shape: NodeShape
    node_id: str = ""
    """Empty while none is found."""
    successor_id: str = ""
    """Of a node that will be taken away."""
    launches: Backoff = field(default_factory=Backoff)
    """Nodes that were lost, or given up, before they had proven themselves here."""
    given_up: int = 0
    """How many of them could not load it."""
    refused: bool = False
    """The last node that was ordered for it was not to be had."""
    touched: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Whoever sits here, and is to."""
        return tuple(node_id for node_id in (self.node_id, self.successor_id) if node_id)

    def plan(self, planned: PlannedStage) -> None:
        """A newer plan has the same stage."""
        self.planned = planned

    def take(self, node_id: str) -> None:
        """Another one sits here, or nobody."""
        self.node_id = node_id

    def promise(self, node_id: str) -> None:
        """Another one is to sit here next, or nobody."""
        need(not node_id or bool(self.node_id), "a vacant seat has no successor")
        self.successor_id = node_id

    def pass_on(self) -> None:
        """The successor sits here now; nobody, where there is none."""
        self.node_id, self.successor_id = self.successor_id, ""

    def count_loss(
        self,
        settings: ClusterSettings,
        cause: str,
        node_id: str,
        now_s: float,
        *,
        served: bool,
        longest_s: float,
    ) -> None:
        """A node came to nothing here; for one that had `served` the pause is shorter."""
        self.refused = False
        count_loss(
            self.launches, settings, cause, node_id, now_s, served=served, longest_s=longest_s
        )

    def refuse(
        self,
        settings: ClusterSettings,
        cause: str,
        node_id: str,
        now_s: float,
        *,
        longest_s: float,
    ) -> None:
        """A node that was ordered for it is not to be had."""
        self.count_loss(settings, cause, node_id, now_s, served=False, longest_s=longest_s)
        self.refused = True

    def give_up(
        self, settings: ClusterSettings, cause: str, node_id: str, now_s: float, *, served: bool
    ) -> None:
        """A node could not load the stage."""
        self.given_up += 1
        longest_s = settings.replace_max_s
        self.count_loss(settings, cause, node_id, now_s, served=served, longest_s=longest_s)

    def forgive(self) -> None:
        """What came to nothing here before counts no more."""
        self.launches.succeed()
        self.given_up, self.refused = 0, False


_SERVED = 8
"""The loss of a node that had served costs a pause so much shorter: it may have been taken away."""


def count_loss(
    failing: Backoff,
    settings: ClusterSettings,
    cause: str,
    node_id: str,
    now_s: float,
    *,
    served: bool,
    longest_s: float,
) -> None:
    """One more node came to nothing."""
    failing.fail(
        now_s,
        cause,
        first_s=settings.retry_s / (_SERVED if served else 1),
        longest_s=longest_s,
        free=served,
        node_id=node_id,
    )


@dataclass(slots=True)
class Pipeline(Noun):
    """A pipeline of the plan, or one that an older plan had and that serves still. Only its own
    methods change it, and State, which keeps the indexes, calls those that begin and end a
    formation."""

    pipeline_id: str
    model: ModelRef
    seats: list[Seat]
    weight_tokens_per_s: float
    phase: PipelinePhase = PipelinePhase.BOTH
    onward: tuple[tuple[str, float], ...] = ()
    """Whom it hands generations on to, in the plan's proportion."""
    formation: Formation | None = None
    handover: Handover | None = None
    down_since_s: float | None = None
    forms: Backoff = field(default_factory=Backoff)
    unlike: str = ""
    """Numerics classes of its stages, when they were last found to differ."""
    stalled: bool = False
    """Its head is there, as far as is known, and does not serve."""
    retiring: bool = False
    """The plan lacks it: it serves until what takes its place does."""
    numerics_class: str = ""
    """Of the last formation that it lost."""
    retires_s: float = 0.0
    """When it was first found that the plan lacks it."""
    departs_s: float = inf
    """Until then its formation ends what it has, or hands it on piece by piece, and takes nothing
    new."""
    touched: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def departing(self) -> bool:
        """Its formation takes nothing new, and is in nobody's way."""
        return self.departs_s < inf

    @property
    def is_ready(self) -> bool:
        """Its formation serves, and takes new generations."""
        return self.formation is not None and not self.formation.forming and not self.drains

    @property
    def drains(self) -> bool:
        """Its formation seals what it has."""
        return self.handover is not None and self.handover.drains

    def state(self, draining: bool) -> PipelineState:
        """As the status shows it; `draining`: some stage's node will be taken away."""
        if self.formation is None or self.formation.forming:
            missing = any(not seat.node_id for seat in self.seats)
            return PipelineState.LOST if missing else PipelineState.LOADING
        goes = draining or self.drains or self.retiring
        return PipelineState.DRAINING if goes else PipelineState.READY

    def as_planned(self) -> PlannedPipeline:
        """As a plan would have it that names the nodes which sit in it now, or come in place of
        those that will be taken away."""
        stages = (
            replace(seat.planned, node_id=seat.successor_id or seat.node_id, shape=seat.shape)
            for seat in self.seats
        )
        return PlannedPipeline(
            self.pipeline_id, tuple(stages), self.weight_tokens_per_s, self.phase, self.onward
        )

    # Its formation

    def form(self, formation: Formation) -> None:
        """Its members are asked to form."""
        need(self.formation is None, f"{self.pipeline_id} has a formation")
        need(not self.retiring, f"{self.pipeline_id} is retired and forms no more")
        self.formation = formation

    def stand(self, now_s: float, kv_block_bytes: int = 0) -> float:
        """Its formation is ready; for how long there was none."""
        need(self.formation is not None, f"{self.pipeline_id} has no formation to stand")
        if self.formation is not None:
            self.formation.stand(kv_block_bytes)
            self.touch()
        self.stalled, self.unlike = False, ""
        self.forms.succeed()
        down_s = now_s - self.down_since_s if self.down_since_s is not None else 0.0
        self.down_since_s = None
        return down_s

    def fall(self, settings: ClusterSettings, cause: str, now_s: float) -> Formation:
        """Its formation is no more."""
        formation = self.formation
        if formation is None:
            need(False, f"{self.pipeline_id} has no formation to lose")
            raise AssertionError
        if formation.forming:
            self.forms.fail(now_s, cause, first_s=settings.retry_s, longest_s=settings.retry_max_s)
        if self.down_since_s is None:
            self.down_since_s = now_s
        self.numerics_class = formation.numerics_class
        if self.handover is not None:
            self.handover.end()
        self.formation = self.handover = None
        self.stalled, self.departs_s = False, inf
        return formation

    def measure(self, kv_block_bytes: int) -> None:
        """A full block of all its layers has so many bytes."""
        need(self.formation is not None, f"{self.pipeline_id} has no formation to measure")
        if self.formation is not None:
            self.formation.kv_block_bytes = kv_block_bytes
            self.touch()

    def judge(self, stalled: bool) -> None:
        """Its head serves, or does not."""
        need(self.is_ready, f"{self.pipeline_id} does not serve and has no head to judge")
        self.stalled = stalled

    def tell_apart(self, classes: str) -> bool:
        """Its stages are of these numerics classes; whether that is news."""
        news = self.unlike != classes
        self.unlike = classes
        return news

    # Its hand-over

    def prepare(self, sampled: int) -> None:
        """What follows its formation is being prepared; `sampled`: tokens of its head so far."""
        need(self.is_ready, f"{self.pipeline_id} does not serve and hands nothing over")
        if self.handover is None and self.formation is not None:
            self.handover = Handover(self.formation.formation_id, sampled)

    def copy_ahead(self) -> None:
        """Blocks go ahead to who goes on with what its formation runs."""
        need(self.handover is not None, f"{self.pipeline_id} hands nothing over")
        if self.handover is not None:
            self.handover.copy()
            self.touch()

    def copied(self) -> None:
        """They have, as far as they did."""
        if self.handover is not None and self.handover.copying:
            self.handover.end_copy()
            self.touch()

    def be_ready_to_hand_over(self) -> None:
        """What follows its formation could begin."""
        need(self.handover is not None, f"{self.pipeline_id} hands nothing over")
        if self.handover is not None:
            self.handover.ready()
            self.touch()

    def depart(self, until_s: float) -> None:
        """Its formation takes nothing new, and goes on until then with what it has."""
        need(self.is_ready, f"{self.pipeline_id} does not serve and has nothing to go on with")
        self.departs_s = until_s
        self.touch()

    def depart_again(self) -> None:
        """It departed before a restart: its head takes nothing new, whatever becomes of its
        nodes. Until when, who looks at these finds anew."""
        self.departs_s = float_info.max

    def drain(self, sampled: int, now_s: float) -> tuple[Formation, int]:
        """Its formation is sealed; with how many tokens sampled since preparations began."""
        self.prepare(sampled)
        formation, handover = self.formation, self.handover
        if formation is None or handover is None:
            raise AssertionError
        handover.drain()
        self.touch()
        self.down_since_s, self.stalled = now_s, False
        return formation, max(0, sampled - handover.sampled)

    def stay(self) -> None:
        """Nothing follows its formation after all."""
        need(not self.drains, f"{self.pipeline_id} is drained and cannot stay")
        self.handover = None

    # The plan

    def retire(self, sampled: int, now_s: float) -> None:
        """The plan lacks it, and nobody is to take a seat of it any more."""
        need(self.formation is not None, f"{self.pipeline_id} serves nobody and just ends")
        if not self.drains:
            self.prepare(sampled)
        self.retiring, self.retires_s = True, now_s

    def keep(self, planned: PlannedPipeline) -> None:
        """The plan has it, perhaps in another role."""
        if self.retiring and not self.drains:
            self.stay()
        self.retiring = False
        self.weight_tokens_per_s = planned.weight_tokens_per_s
        self.phase, self.onward = planned.phase, planned.onward
        for seat, stage in zip(self.seats, planned.stages, strict=True):
            seat.plan(stage)
