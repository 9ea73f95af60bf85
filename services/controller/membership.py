"""Nodes, stages, formations and pipelines as the cluster core holds them, and their snapshot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from services.common.generation import LayerRange
from services.controller.actions import (
    Beat,
    Member,
    NodeFacts,
    NodeShape,
    NodeState,
    NodeView,
    PipelineState,
    PipelineView,
    StageView,
)


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
    loading: LayerRange | None = None
    heard_s: float = 0.0
    confirmed: bool = True
    """Heard from since the controller started."""
    beat: Beat | None = None
    strange_beats: int = 0
    """Beats in a row that name another formation than the one it should be in."""
    notice_s: float | None = None
    """Length of the notice it was given."""
    deadline_s: float | None = None
    retry_at_s: float = 0.0

    @property
    def present(self) -> bool:
        """Registered and not lost."""
        return self.facts is not None and not self.lost

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


@dataclass(slots=True)
class Pipeline:
    """A pipeline of the plan."""

    pipeline_id: str
    stages: list[Stage]
    throughput_tokens_per_s: float
    formation: Formation | None = None
    down_since_s: float | None = None
    retry_at_s: float = 0.0
    ready_sampled: int | None = None
    """Tokens the head had sampled at its first beat after the replacement was ready."""
    replacement_ready_s: float | None = None

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

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.pipelines: list[Pipeline] = []
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

    def drop_unready_formations(self) -> list[Formation]:
        """Those that were not yet, or no longer, to serve; their pipelines have none now."""
        dropped = []
        for pipeline in self.pipelines:
            if pipeline.formation is not None and not pipeline.is_ready:
                dropped.append(pipeline.formation)
                pipeline.formation = None
        return dropped

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

    def to_snapshot(self) -> str:
        """What must outlive the controller: who is who and who forms what, as JSON."""
        return json.dumps(
            {
                "counter": self.counter,
                "nodes": [_node_json(node) for node in self.nodes.values() if not node.lost],
                "pipelines": [_pipeline_json(pipeline) for pipeline in self.pipelines],
            },
            sort_keys=True,
        )

    @classmethod
    def from_snapshot(cls, snapshot: str, now_s: float) -> Membership:
        """As it was; nobody is confirmed yet."""
        document = json.loads(snapshot)
        state = cls()
        state.counter = document["counter"]
        state.nodes = {item["node_id"]: _node(item, now_s) for item in document["nodes"]}
        state.pipelines = [_pipeline(item, now_s) for item in document["pipelines"]]
        return state


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


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "shape": asdict(node.shape),
        "facts": asdict(node.facts) if node.facts is not None else None,
        "layers": [node.layers.start, node.layers.end] if node.layers is not None else None,
        "kv_blocks": node.kv_blocks,
        "notice_s": node.notice_s,
        "leaving": node.leaving,
    }


def _pipeline_json(pipeline: Pipeline) -> dict[str, Any]:
    formation = pipeline.formation
    return {
        "pipeline_id": pipeline.pipeline_id,
        "throughput_tokens_per_s": pipeline.throughput_tokens_per_s,
        "stages": [asdict(stage) for stage in pipeline.stages],
        "formation": asdict(formation) if formation is not None else None,
    }


def _pipeline(item: dict[str, Any], now_s: float) -> Pipeline:
    return Pipeline(
        item["pipeline_id"],
        [_stage(stage) for stage in item["stages"]],
        item["throughput_tokens_per_s"],
        _formation(item["formation"]),
        down_since_s=now_s,
    )


def _node(item: dict[str, Any], now_s: float) -> Node:
    facts = item["facts"]
    shape = NodeShape(**item["shape"])
    notice_s = item["notice_s"]
    return Node(
        item["node_id"],
        shape,
        now_s,
        NodeFacts(**{**facts, "shape": NodeShape(**facts["shape"])}) if facts else None,
        leaving=item["leaving"],
        layers=LayerRange(*item["layers"]) if item["layers"] else None,
        kv_blocks=item["kv_blocks"],
        heard_s=now_s,
        confirmed=False,
        notice_s=notice_s,
        deadline_s=None if notice_s is None else now_s + notice_s,
    )


def _stage(item: dict[str, Any]) -> Stage:
    return Stage(
        LayerRange(**item["layers"]),
        item["tp_degree"],
        NodeShape(**item["shape"]),
        item["node_id"],
        item["spare_id"],
    )


def _formation(item: dict[str, Any] | None) -> Formation | None:
    if item is None:
        return None
    members = tuple(
        Member(**{**member, "layers": LayerRange(**member["layers"])}) for member in item["members"]
    )
    state = FormationState(item["state"])
    return Formation(item["formation_id"], members, item["kv_blocks"], state)
