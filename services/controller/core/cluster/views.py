"""The cluster as others see it: the status, the ledger, and whoever asks for another plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from services.common.exchange import DeployedModel
from services.common.generation import LayerRange, ModelRef
from services.common.machine import NOTHING_KNOWN, MachineFacts
from services.common.nodes import Member
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import AskPlan, NodeState, PipelineState
from services.controller.core.cluster.backends import KnownShapes
from services.controller.core.cluster.difference import Difference, difference
from services.controller.core.cluster.faults import FaultView, deployed_models, faults_of
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.lacks import is_busy, lacks_of
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.node import Node
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.replanning import Lack
from services.controller.core.cluster.routes import coming, heads_of
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.spares import cost_per_hour, price_per_hour, spares
from services.controller.core.cluster.state import State
from services.controller.core.cluster.steps import plan_question
from services.controller.core.ledger.outcomes import RunsAt, ServingHead


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the status shows it."""

    node_id: str
    pid: int
    incarnation: str
    state: NodeState
    pipeline_id: str
    stage_index: int | None
    address: str
    machine: MachineFacts
    backend: str
    """Empty while it has not registered."""
    model_id: str
    """Of the pipeline it has a place in, or of what it holds; empty where there is neither."""
    metrics_address: str
    """Where Prometheus asks it, host:port; empty where it cannot."""


@dataclass(frozen=True, slots=True)
class SpareView:
    """A spare as the status shows it."""

    node_id: str
    model_id: str
    """That it holds stages of; empty while it holds none."""
    held: tuple[LayerRange, ...]
    lacks: tuple[LayerRange, ...]
    """What of the plan it was asked for too, and has no room for beside those."""
    price_per_hour: float | None
    """None where it is not known."""


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage as the status shows it; no node while none is found."""

    node_id: str
    layers: LayerRange
    tp_degree: int
    backend: str
    """Of the node; empty while there is none."""


@dataclass(frozen=True, slots=True)
class PipelineView:
    """A pipeline as the status shows it."""

    pipeline_id: str
    state: PipelineState
    formation_id: str
    stages: tuple[StageView, ...]
    phase: PipelinePhase


class View:
    """What is true at the moment of asking; nothing is changed by it."""

    def __init__(self, state: State, settings: ClusterSettings, market: Market) -> None:
        self._state = state
        self._settings = settings
        self._market = market

    # The status

    def nodes(self) -> tuple[NodeView, ...]:
        """Lost ones too, for as long as they are remembered."""
        state, kept = self._state, self._spare_ids()
        places = _places([*state.wanted(), *state.retiring()])
        return tuple(self._node(node, places, kept) for node in state.nodes.values())

    def node(self, node_id: str) -> NodeView | None:
        """The same of one node."""
        state, node = self._state, self._state.nodes.get(node_id)
        if node is None:
            return None
        pipelines = [*state.indexes.pipelines_of(node_id), *state.retiring()]
        return self._node(node, _places(pipelines), self._spare_ids())

    def _node(
        self, node: Node, places: Mapping[str, tuple[str, int]], kept: Collection[str]
    ) -> NodeView:
        facts, (pipeline_id, stage_index) = node.facts, places.get(node.node_id, ("", None))
        return NodeView(
            node.node_id,
            facts.pid if facts is not None else 0,
            node.incarnation,
            node.state(
                assigned=stage_index is not None,
                serves=self._state.serves(node),
                spare=node.node_id in kept,
            ),
            pipeline_id,
            stage_index,
            facts.address if facts is not None else "",
            facts.machine if facts is not None else NOTHING_KNOWN,
            facts.shape.backend if facts is not None else "",
            self._model_of(node, pipeline_id),
            facts.metrics_address if facts is not None else "",
        )

    def _model_of(self, node: Node, pipeline_id: str) -> str:
        pipeline = self._state.pipelines.get(pipeline_id)
        held = node.stages[0].model.model_id if node.stages else ""
        return pipeline.model.model_id if pipeline is not None else held

    def down_s(self, now_s: float) -> dict[str, float]:
        """By model that the plan has pipelines for: how long the one that has not served for
        longest has not; 0 while all of them do."""
        down_s = {pipeline.model.model_id: 0.0 for pipeline in self._state.wanted()}
        for pipeline in self._state.wanted():
            if pipeline.down_since_s is not None:
                name = pipeline.model.model_id
                down_s[name] = max(down_s[name], now_s - pipeline.down_since_s)
        return down_s

    def pipelines(self) -> tuple[PipelineView, ...]:
        """Of the plan, and those that it lets go while they serve."""
        return tuple(
            PipelineView(
                pipeline.pipeline_id,
                pipeline.state(self._state.draining(pipeline)),
                pipeline.formation.formation_id if pipeline.formation is not None else "",
                tuple(
                    StageView(
                        seat.node_id,
                        seat.stage.layers,
                        seat.stage.tp_degree,
                        self._backend(seat.node_id),
                    )
                    for seat in pipeline.seats
                ),
                pipeline.phase,
            )
            for pipeline in self._state.pipelines.values()
        )

    def _backend(self, node_id: str) -> str:
        node = self._state.nodes.get(node_id)
        return node.facts.shape.backend if node is not None and node.facts is not None else ""

    def spares(self) -> tuple[SpareView, ...]:
        """Nodes that are kept without a place, those too that are on their way."""
        kept = self._spares()
        planned = {seat.stage for p in self._state.wanted() for seat in p.seats} if kept else set()
        return tuple(
            SpareView(
                node.node_id,
                node.stages[0].model.model_id if node.stages else "",
                tuple(stage.layers for stage in node.stages),
                tuple(stage.layers for stage in node.lacks if stage in planned),
                price_per_hour(self._market, node),
            )
            for node in kept
        )

    def spares_cost_per_hour(self) -> float | None:
        """What they cost; None where a price is not known."""
        return cost_per_hour(self._market, self._spares())

    def _spare_ids(self) -> set[str]:
        return {node.node_id for node in self._spares()}

    def _spares(self) -> list[Node]:
        return spares(self._state, self._settings, self._market)

    def faults(self) -> tuple[FaultView, ...]:
        """What keeps failing, the worst first."""
        return faults_of(self._state)

    def models(self) -> tuple[DeployedModel, ...]:
        """What is to be served, and what of it never will be as things are."""
        return deployed_models(self._state)

    def unusable(self) -> str:
        """Why no pipeline will ever take requests as things are, whatever its model; empty when one
        does or may."""
        reasons = [one.unusable for one in self.models()]
        return reasons[0] if all(reasons) else ""

    # Who runs where

    def heads(self, now_s: float) -> tuple[ServingHead, ...]:
        """Every living formation's head, for the ledger."""
        return heads_of(self._state, self._settings, now_s)

    def coming(self) -> frozenset[tuple[ModelRef, str]]:
        """Arithmetic that is about to serve again."""
        return coming(self._state)

    def pipeline_of(self, formation_id: str) -> str:
        """The pipeline a formation serves; '' when it is not known."""
        pipeline = self._state.pipeline(formation_id)
        return pipeline.pipeline_id if pipeline is not None else ""

    def runs_at(self, formation_id: str) -> RunsAt | None:
        """What a formation serves; None for one that is not known."""
        pipeline = self._state.pipeline(formation_id)
        if pipeline is None:
            return None
        formation = pipeline.formation
        block_bytes = formation.kv_block_bytes if formation is not None else 0
        return RunsAt(pipeline.pipeline_id, pipeline.model, block_bytes)

    def ends_at_s(self, formation_id: str) -> float:
        """When the first of a formation's nodes will be taken away; infinite where none will."""
        nodes = map(self._state.nodes.get, (m.node_id for m in self.members(formation_id)))
        ends_s = (node.deadline_s for node in nodes if node is not None)
        return min((one for one in ends_s if one is not None), default=inf)

    def goes(self, formation_id: str) -> bool:
        """What a formation runs will leave it, as far as is known by now: it is handed over, or it
        departs."""
        pipeline = self._state.pipeline(formation_id)
        return pipeline is not None and (pipeline.handover is not None or pipeline.departing)

    def members(self, formation_id: str) -> tuple[Member, ...]:
        """Of a formation that lives; none of one that is not known."""
        pipeline = self._state.pipeline(formation_id)
        formation = pipeline.formation if pipeline is not None else None
        return formation.members if formation is not None else ()

    def beside(self, formation_id: str) -> dict[str, int]:
        """Other formations of its model that take new generations: positions of KV cache that each
        has in all."""
        own, size = self._state.pipeline(formation_id), self._settings.block_positions
        others = self._state.of_model(own.model) if own is not None else []
        return {
            p.formation.formation_id: p.formation.kv_blocks * size
            for p in others
            if p is not own and p.formation is not None and p.is_ready and not p.departing
        }

    def incarnation_of(self, node_id: str) -> str:
        """Of the process that is the node; empty where none has registered as it."""
        node = self._state.nodes.get(node_id)
        return node.incarnation if node is not None else ""

    def shapes(self) -> KnownShapes:
        """Of nodes, and of those that are on offer."""
        return KnownShapes(
            {node.node_id: node.shape for node in self._state.nodes.values()},
            {offer.offer_id: offer.shape for offer in self._market.offers()},
        )

    def addresses(self) -> set[str]:
        """Of the nodes that are known."""
        return {n.facts.address for n in self._state.nodes.values() if n.facts is not None}

    def deadlines_s(self) -> dict[str, float]:
        """Nodes that were given notice, and when they will be taken away."""
        nodes = self._state.nodes.values()
        return {n.node_id: n.deadline_s for n in nodes if n.deadline_s is not None}

    # What a next plan starts from

    @property
    def next_plan_number(self) -> int:
        """Of a plan that is to take the place of every one there was."""
        return self._state.last_number + 1

    def plan_question(self, goals: Goals) -> AskPlan:
        """What placement is to be asked for a plan that would serve these."""
        usable = (node for node in self._state.nodes.values() if node.usable)
        facts = tuple(node.facts for node in usable if node.facts is not None)
        return plan_question(self._state, self._settings, goals, facts)

    def difference(self, plan: Plan, now_s: float) -> Difference:
        """What a newer plan would change, were it adopted now; nothing is changed by asking."""
        return difference(self._state, self._settings, self._market, plan, now_s)

    @property
    def busy(self) -> bool:
        """A change is being carried out, and goes on by itself."""
        return is_busy(self._state, self._settings)

    def lacks(self) -> frozenset[Lack]:
        """Seats of the plan that nobody is to be had for."""
        return lacks_of(self._state, self._settings)

    def asleep(self) -> tuple[ModelRef, ...]:
        """Models that the plan gives no pipeline."""
        return self._state.asleep

    def running(self) -> tuple[tuple[ModelRef, PlannedPipeline], ...]:
        """The plan's pipelines on the nodes that sit in them now, each with its model; vacant ones
        left out."""
        return self._state.running()

    def whole(self) -> tuple[tuple[ModelRef, PlannedPipeline], ...]:
        """Those of them that lack nobody: all their nodes are there."""
        present = {node.node_id for node in self._state.staying() if node.present}
        return tuple(
            (model, pipeline)
            for model, pipeline in self._state.running()
            if present.issuperset(stage.node_id for stage in pipeline.stages)
        )

    def planned_pipelines(self, model: ModelRef) -> int:
        """How many the plan has for a model."""
        return sum(pipeline.model == model for pipeline in self._state.wanted())

    def staying(self) -> list[Node]:
        """Nodes that may be given a place, or have one: they are there or start."""
        return self._state.staying()

    def seated_but_of(self, model: ModelRef) -> frozenset[str]:
        """Nodes that have a place in pipelines of other models, in those too that the plan lets go
        and that serve until what follows them does; but for those the plan has for this one."""
        state = self._state
        others = (p for p in state.pipelines.values() if p.model != model)
        own = {n for p in state.wanted() if p.model == model for s in p.seats for n in s.node_ids}
        return frozenset(n for p in others for s in p.seats for n in s.node_ids) - own

    def guests(self) -> frozenset[str]:
        """Nodes that came by themselves, have no place, and are not kept for one."""
        seatless = self._state.indexes.seatless()
        guests = (n.node_id for n in seatless if n.usable and not n.launched)
        return frozenset(guests) - self._spare_ids()


def _places(pipelines: Iterable[Pipeline]) -> dict[str, tuple[str, int]]:
    """Where nodes sit: pipeline and index of the stage; in a later one, where there are two."""
    return {
        seat.node_id: (pipeline.pipeline_id, index)
        for pipeline in pipelines
        for index, seat in enumerate(pipeline.seats)
    }
