"""What the cluster core asks of its edges, and the values they tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape, StageHolding, StageSpec
from services.common.notices import NoticeKind
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.plan import PlannedPipeline


class NodeState(StrEnum):
    """A node's life."""

    STARTING = "starting"
    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"
    SPARE = "spare"
    """It has no place, and is kept for one."""


class PipelineState(StrEnum):
    """A pipeline's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Beat:
    """A node's sign of life."""

    node_id: str
    incarnation: str
    formation_id: str
    """Formation it is part of; empty when none."""
    sampled_tokens: int = 0
    lost_node_ids: tuple[str, ...] = ()
    """Members of its formation, or of the last one while it is in none, that it cannot reach."""
    steps: int = 0
    """Begun since its start, if it is a head."""
    has_work: bool = False
    """Steps should be made: without rising ones the head does not serve."""
    departs_in_s: float | None = None
    """Its process was told to stop and will have ended by then."""
    notice: NoticeKind | None = None
    """Why it departs; advice, where it does not."""


@dataclass(frozen=True, slots=True)
class LaunchNode:
    """Provider: start a node with this id; it registers by itself. On failure: launch_failed."""

    node_id: str
    shape: NodeShape
    offer_id: str = ""
    """What the plan has it run on; whatever is offered of its shape where that is not to be had, or
    the plan names none."""


@dataclass(frozen=True, slots=True)
class TerminateNode:
    """Provider: end the node's process; `kill` without notice. Unknown nodes are no error."""

    node_id: str
    kill: bool = False


@dataclass(frozen=True, slots=True)
class ShunOffer:
    """The offer that a node was launched from did not keep its word: it is left alone for a
    while."""

    node_id: str


@dataclass(frozen=True, slots=True)
class AskPlan:
    """Placement: a plan for these nodes. Answer with plan_ready or plan_failed."""

    number: int
    """Of the plan that is asked for."""
    goals: tuple[Goal, ...]
    """What it is to serve, all of it."""
    nodes: tuple[NodeFacts, ...]
    pipelines: int
    """Of all nodes together."""
    running: tuple[tuple[ModelRef, PlannedPipeline], ...] = ()
    """What serves now, on the nodes that it is on."""


@dataclass(frozen=True, slots=True)
class LoadStage:
    """Engine: Hold, of this stage, in place of what it was asked for before: the one it serves with
    stays by itself until its formation ends. Answer with load_done or load_failed."""

    node_id: str
    incarnation: str
    address: str
    model: ModelRef
    layers: LayerRange
    tp_degree: int
    among: tuple[StageSpec, ...] = ()
    """All that is to be held, this stage among it, those first that have memory first; empty: this
    stage alone."""

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """Of the Hold."""
        return self.among or (StageSpec(self.layers, self.tp_degree),)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of LoadStage."""

    kv_blocks: int
    """KV cache blocks there is room for once it alone is held."""
    numerics_class: str
    """Class of the stage's arithmetic."""
    held: bool = True
    """In memory; else in the store of its node, for it has no room beside what the node serves
    with, or what it is to hold first."""
    beside: tuple[StageSpec, ...] = ()
    """Others that were asked for and are in memory."""

    @classmethod
    def of(cls, load: LoadStage, holdings: Sequence[StageHolding]) -> Loaded:
        """Of what a node answers to the Hold; each of its stages is there."""
        held = {one.spec: one for one in holdings if one.held}
        spec = StageSpec(load.layers, load.tp_degree)
        own = held.pop(spec, None)
        if own is None:
            return cls(0, "", False, tuple(held))
        return cls(own.kv_blocks, own.numerics_class, True, tuple(held))


@dataclass(frozen=True, slots=True)
class FormPipeline:
    """Engines: Form on every member, the head last. Answer with formed or form_failed."""

    formation_id: str
    pipeline_id: str
    model: ModelRef
    members: tuple[Member, ...]
    """Head first."""
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class DissolveFormation:
    """Engines: Dissolve on these members, best effort, all at once; no answer. A FormPipeline
    that is emitted behind it must find it done: `Turns` says which has to wait."""

    formation_id: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class DrainFormation:
    """Head engine: Drain. Answer with drained or drain_failed."""

    formation_id: str
    members: tuple[Member, ...]
    """Head first."""

    @property
    def head(self) -> Member:
        return self.members[0]


@dataclass(frozen=True, slots=True)
class CopyAhead:
    """Head engine: CopyKv, while it serves. Answer with copied, whatever came of it."""

    formation_id: str
    members: tuple[Member, ...]
    """Head first."""
    followers: tuple[Member, ...]
    """Who will form what follows it, with the layers that each will have."""
    limit_s: float
    waited_for: bool = False
    """Its readers wait for them, whoever serves meanwhile."""

    @property
    def head(self) -> Member:
        return self.members[0]


@dataclass(frozen=True, slots=True)
class DepartFormation:
    """Head engine: Drain of what has to leave it, one after another, while the rest decodes on,
    until it is told DrainFormation. Answer with departed once nothing runs there any more."""

    formation_id: str
    members: tuple[Member, ...]
    """Head first."""
    until_s: float

    @property
    def head(self) -> Member:
        return self.members[0]


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Tell every router that watches: `Cluster.routes`."""

    version: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Append to the event log, with the wall time."""

    kind: str
    node_id: str = ""
    pipeline_id: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PersistCluster:
    """Store these notes, all of them or none; `Cluster.recover` reads what stands."""

    notes: Mapping[str, str | None]
    """JSON by key, only what has changed; None deletes one."""


Action = (
    LaunchNode
    | TerminateNode
    | ShunOffer
    | AskPlan
    | LoadStage
    | FormPipeline
    | DissolveFormation
    | CopyAhead
    | DrainFormation
    | DepartFormation
    | RoutesChanged
    | LogEvent
    | PersistCluster
)
