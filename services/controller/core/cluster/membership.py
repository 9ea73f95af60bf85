"""Nodes, stages, formations and pipelines as the cluster core holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.generation import LayerRange
from services.common.nodes import Member, NodeFacts, NodeShape
from services.controller.core.cluster.actions import (
    NodeState,
    NodeView,
    PipelineState,
    PipelineView,
    StageView,
)
from services.controller.core.cluster.backoff import Backoff


@dataclass(slots=True)
class Node:
    """A node, from its launch to some time after its loss."""

    node_id: str
    shape: NodeShape
    since_s: float
    """Launched, registered or lost at."""
    facts: NodeFacts | None = None
    """None until it registers."""
    lost: bool = False
    leaving: bool = False
    """Its stage was handed over; it is not to be used again unless its notice lapses."""
    layers: LayerRange | None = None
    """What it holds."""
    kv_blocks: int = 0
    numerics_class: str = ""
    """Of the stage it holds."""
    loading: LayerRange | None = None
    refused: LayerRange | None = None
    """What it failed to load last."""
    loads: Backoff = field(default_factory=Backoff)
    """Of what it refused."""
    served_s: float | None = None
    """When it first was in a formation that was ready."""
    heard_s: float = 0.0
    steps: int = 0
    """As its last beat told them."""
    stepped_s: float = 0.0
    """When a beat last showed more steps, or no work."""
    confirmed: bool = True
    """Heard from since the controller started."""
    strange_beats: int = 0
    """Beats in a row that name another formation than the one it should be in."""
    deadline_s: float | None = None
    """It was given notice: it will be taken away then."""
    departs: bool = False
    """It gave that notice itself: there is no doubt about it."""

    @property
    def present(self) -> bool:
        """Registered and not lost."""
        return self.facts is not None and not self.lost

    def came_to_something(self, stable_s: float, now_s: float) -> bool:
        """It has served for a while."""
        return self.served_s is not None and now_s - self.served_s >= stable_s

    @property
    def usable(self) -> bool:
        """It may be given a place."""
        return self.present and self.deadline_s is None and not self.leaving

    def holds(self, layers: LayerRange) -> bool:
        """It is there and has these layers."""
        return self.present and self.layers == layers

    def state(self, assigned: bool) -> NodeState:
        """As the status shows it."""
        if self.lost:
            return NodeState.LOST
        if self.facts is None:
            return NodeState.STARTING
        if self.deadline_s is not None:
            return NodeState.DRAINING
        if self.loading is not None:
            return NodeState.LOADING
        return NodeState.READY if assigned and self.layers is not None else NodeState.IDLE


class FormationState(StrEnum):
    """A formation's life."""

    FORMING = "forming"
    READY = "ready"
    HANDING_OVER = "handing_over"


@dataclass(slots=True)
class Formation:
    """A pipeline's members for as long as all of them live."""

    formation_id: str
    members: tuple[Member, ...]
    kv_blocks: int
    state: FormationState = FormationState.FORMING


@dataclass(slots=True)
class Stage:
    """A stage of a pipeline, who runs it, and who is to run it next."""

    layers: LayerRange
    tp_degree: int
    shape: NodeShape
    node_id: str = ""
    """Empty while none is found."""
    spare_id: str = ""
    """The replacement of a node that will be taken away."""
    launches: Backoff = field(default_factory=Backoff)
    """Nodes that were lost, or given up, before they had proven themselves here."""
    given_up: int = 0
    """How many of them could not load it."""


@dataclass(slots=True)
class Pipeline:
    """A pipeline of the plan."""

    pipeline_id: str
    stages: list[Stage]
    throughput_tokens_per_s: float
    formation: Formation | None = None
    down_since_s: float | None = None
    forms: Backoff = field(default_factory=Backoff)
    unlike: str = ""
    """Numerics classes of its stages, when they were last found to differ."""
    ready_sampled: int | None = None
    """Tokens the head had sampled at its first beat after the replacement was ready."""
    replacement_ready_s: float | None = None
    stalled: bool = False
    """Its head is there, as far as is known, and does not serve."""

    @property
    def is_ready(self) -> bool:
        """Its formation serves, and takes new generations."""
        return self.formation is not None and self.formation.state is FormationState.READY

    def state(self, draining: bool) -> PipelineState:
        """As the status shows it; `draining`: some stage's node will be taken away."""
        formation = self.formation
        if formation is None or formation.state is FormationState.FORMING:
            missing = any(not stage.node_id for stage in self.stages)
            return PipelineState.LOST if missing else PipelineState.LOADING
        handing_over = formation.state is FormationState.HANDING_OVER
        return PipelineState.DRAINING if draining or handing_over else PipelineState.READY


class Membership:
    """All nodes and pipelines."""

    def __init__(self, basis: str) -> None:
        self.basis = basis
        """What its plan is made for: `ClusterSettings.basis`."""
        self.nodes: dict[str, Node] = {}
        self.pipelines: list[Pipeline] = []
        self.first_launches = Backoff()
        """Nodes that were lost before there was a plan."""
        self.counter = 0
        """Nodes launched so far; their names count on."""

    def launch(self, shape: NodeShape, now_s: float) -> Node:
        """A node that is about to be started."""
        self.counter += 1
        while f"node-{self.counter}" in self.nodes:
            self.counter += 1
        node = Node(f"node-{self.counter}", shape, now_s)
        self.nodes[node.node_id] = node
        return node

    def pipeline(self, formation_id: str) -> Pipeline | None:
        """The pipeline that a living formation serves."""
        for pipeline in self.pipelines:
            formation = pipeline.formation
            if formation is not None and formation.formation_id == formation_id:
                return pipeline
        return None

    def staying(self) -> list[Node]:
        """Nodes that are there or start, and are not about to go."""
        nodes = (node for node in self.nodes.values() if not node.lost and not node.leaving)
        return [node for node in nodes if node.deadline_s is None]

    def living(self, formation: Formation) -> tuple[Member, ...]:
        """Members that are still there."""
        return tuple(m for m in formation.members if self.is_there(m))

    def is_there(self, member: Member) -> bool:
        """The very process lives, as far as is known."""
        node = self.nodes.get(member.node_id)
        if node is None or node.facts is None or node.lost:
            return False
        return node.facts.incarnation == member.incarnation

    def heard_from(self, formation: Formation, since_s: float) -> bool:
        """Every member was heard from since then, by this very controller process."""
        nodes = [self.nodes[m.node_id] for m in formation.members if self.is_there(m)]
        heard = [node for node in nodes if node.confirmed and node.heard_s >= since_s]
        return len(heard) == len(formation.members)

    def draining(self, pipeline: Pipeline) -> bool:
        """Some stage's node will be taken away."""
        nodes = (self.nodes.get(stage.node_id) for stage in pipeline.stages)
        return any(node is not None and node.deadline_s is not None for node in nodes)

    def node_views(self) -> tuple[NodeView, ...]:
        """For the status."""
        places = {
            stage.node_id: (pipeline.pipeline_id, index)
            for pipeline in self.pipelines
            for index, stage in enumerate(pipeline.stages)
        }
        return tuple(
            _node_view(node, *places.get(node.node_id, ("", None))) for node in self.nodes.values()
        )

    def pipeline_views(self) -> tuple[PipelineView, ...]:
        """For the status."""
        return tuple(
            PipelineView(
                pipeline.pipeline_id,
                pipeline.state(self.draining(pipeline)),
                pipeline.formation.formation_id if pipeline.formation is not None else "",
                tuple(StageView(s.node_id, s.layers, s.tp_degree) for s in pipeline.stages),
            )
            for pipeline in self.pipelines
        )


def match_shapes(
    shapes: Iterable[NodeShape], nodes: Iterable[Node]
) -> tuple[list[NodeShape], list[Node]]:
    """Shapes that no node has, and nodes that no shape asks for."""
    lacking, surplus = list(shapes), []
    for node in nodes:
        if node.shape in lacking:
            lacking.remove(node.shape)
        else:
            surplus.append(node)
    return lacking, surplus


def _node_view(node: Node, pipeline_id: str, stage_index: int | None) -> NodeView:
    facts = node.facts
    return NodeView(
        node.node_id,
        facts.pid if facts is not None else 0,
        facts.incarnation if facts is not None else "",
        node.state(stage_index is not None),
        pipeline_id,
        stage_index,
        facts.address if facts is not None else "",
    )
