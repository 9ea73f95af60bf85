"""What runs: nodes, pipelines and their formations, and where to find them.

Formations begin and end here, so that the indexes are true; everything else is changed by the
nouns' own methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf

from services.common.generation import ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape
from services.controller.core.cluster.actions import Loaded
from services.controller.core.cluster.asking import PlanAsking
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.indexes import Indexes
from services.controller.core.cluster.liveness import Liveness
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Formation, Pipeline, Seat
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.transitions import need


class State:
    """The plan that is carried out, and how far it is."""

    def __init__(self, basis: str, goals: Goals, liveness: Liveness) -> None:
        self.goals = goals
        """What is to be served."""
        self.basis = basis
        """What its plan is made for: `ClusterSettings.basis`."""
        self.liveness = liveness
        """Of the nodes' processes; told here who is there and in which formation."""
        self.plan: Plan | None = None
        self.last_number = 0
        """Of the newest plan there ever was."""
        self.nodes: dict[str, Node] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.first_launches = Backoff()
        """Nodes that were lost before there was a plan."""
        self.spare_launches = Backoff()
        """Spares that came to nothing."""
        self.asking = PlanAsking()
        self.switched_s = -inf
        """When a formation was last drained for the plan's sake."""
        self.launched = 0
        """Nodes launched so far; their names count on."""
        self.named = 0
        """Pipelines that were given a name so far."""
        self.indexes = Indexes(self.nodes, self.pipelines)
        self._by_formation: dict[str, Pipeline] = {}
        self._by_process: dict[str, Pipeline] = {}

    def adopt(self, plan: Plan) -> None:
        """It is the plan from now on."""
        need(plan.number > self.last_number, f"plan {plan.number} is not newer")
        self.plan, self.last_number = plan, plan.number

    def aim_at(self, goals: Goals) -> None:
        """This is to be served from now on."""
        self.goals = goals

    @property
    def asleep(self) -> tuple[ModelRef, ...]:
        """Models that the plan gives no pipeline."""
        deployments = () if self.plan is None else self.plan.deployments
        return tuple(one.model for one in deployments if not one.pipelines)

    @property
    def falls_short(self) -> bool:
        """The plan is for other models than what is to be served, or there is none."""
        return self.plan is None or self.plan.models != self.goals.models

    # Nodes

    def launch(self, shape: NodeShape, now_s: float) -> Node:
        """A node that is about to be started."""
        self.launched += 1
        while f"node-{self.launched}" in self.nodes:
            self.launched += 1
        return self.put(Node(f"node-{self.launched}", shape, now_s, launched=True))

    def put(self, node: Node) -> Node:
        """One more, or another one of the same name."""
        self.nodes[node.node_id] = node
        self.indexes.node(node)
        return node

    def register(self, node: Node, facts: NodeFacts, now_s: float) -> tuple[bool, bool]:
        """Its process says what it is: see `Node.register`."""
        told = node.register(facts, now_s)
        self.liveness.watch(node.node_id, node.incarnation, now_s, confirmed=True)
        return told

    def lose(self, node: Node, now_s: float) -> None:
        """It is gone, as far as is known."""
        node.lose(now_s)
        self.liveness.forget(node.incarnation)

    def load(self, node: Node, stage: HeldStage) -> None:
        """It is asked for a stage; no formation may count on what it holds meanwhile."""
        node.load(stage)
        self._carry(node)

    def stock_up(self, node: Node, stage: HeldStage, asked: tuple[HeldStage, ...]) -> None:
        """It is asked for one more stage that it is to have in stock."""
        node.stock_up(stage, asked)
        self._carry(node)

    def loaded(self, node: Node, loaded: Loaded) -> None:
        """It holds what it loaded."""
        node.loaded(loaded)
        self._carry(node)

    def forget_stage(self, node: Node) -> None:
        """What it holds is of no use any more."""
        node.forget_stage()
        self._carry(node)

    def _carry(self, node: Node) -> None:
        """Tells whether it holds a stage, or serves with one."""
        self.liveness.carry(node.incarnation, bool(node.stages) or self.serves(node))

    def recover(self, node: Node, now_s: float) -> None:
        """An older controller had it."""
        self.put(node)
        if node.present:
            self.liveness.watch(node.node_id, node.incarnation, now_s, confirmed=False)
            self._carry(node)

    def forget(self, node: Node) -> None:
        """It was shown as lost for long enough."""
        need(node.lost, f"{node.node_id} is not lost and cannot be forgotten")
        del self.nodes[node.node_id]
        self.indexes.touch_node(node.node_id)

    def staying(self) -> list[Node]:
        """Nodes that are there or start, and are not about to go."""
        return [node for node in self.nodes.values() if node.stays]

    def is_there(self, member: Member) -> bool:
        """The very process lives, as far as is known."""
        node = self.nodes.get(member.node_id)
        return node is not None and node.present and node.incarnation == member.incarnation

    # Pipelines

    def wanted(self) -> list[Pipeline]:
        """Pipelines that the plan has."""
        return [pipeline for pipeline in self.pipelines.values() if not pipeline.retiring]

    def retiring(self) -> list[Pipeline]:
        """Pipelines that the plan lacks and that serve still."""
        return [pipeline for pipeline in self.restless() if pipeline.retiring]

    def restless(self) -> list[Pipeline]:
        """Pipelines that do not just serve: see `Indexes`."""
        return self.indexes.restless_pipelines()

    def lacking(self) -> list[Pipeline]:
        """Those of them that the plan has."""
        return [pipeline for pipeline in self.restless() if not pipeline.retiring]

    def of_model(self, model: ModelRef) -> list[Pipeline]:
        """Pipelines that serve this version, or are to."""
        return [pipeline for pipeline in self.pipelines.values() if pipeline.model == model]

    def next_name(self) -> str:
        """Of a pipeline; none has had it."""
        self.named += 1
        while f"pipeline-{self.named}" in self.pipelines:
            self.named += 1
        return f"pipeline-{self.named}"

    def add(self, pipeline: Pipeline, now_s: float) -> None:
        """One more; with its formation, if it has one."""
        need(pipeline.pipeline_id not in self.pipelines, f"{pipeline.pipeline_id} is there")
        self.pipelines[pipeline.pipeline_id] = pipeline
        self.indexes.pipeline(pipeline)
        if pipeline.formation is not None:
            self._enter(pipeline, pipeline.formation, now_s)

    def remove(self, pipeline: Pipeline) -> None:
        """It is over."""
        need(pipeline.formation is None, f"{pipeline.pipeline_id} has a formation still")
        del self.pipelines[pipeline.pipeline_id]
        self.indexes.touch_pipeline(pipeline.pipeline_id)

    def lacking_seats(self) -> Iterator[tuple[Pipeline, Seat]]:
        """Of the plan's pipelines that do not just serve."""
        for pipeline in self.lacking():
            for seat in pipeline.seats:
                yield pipeline, seat

    def seats(self, node_id: str) -> list[tuple[Pipeline, Seat]]:
        """Where a node sits or is to sit, by the plan."""
        pipelines = self.indexes.pipelines_of(node_id)
        return [(p, seat) for p in pipelines for seat in p.seats if node_id in seat.node_ids]

    def is_seated(self, node: Node) -> bool:
        """It sits somewhere, or is to, by the plan."""
        return bool(self.indexes.pipelines_of(node.node_id))

    def is_taken_away(self, seat: Seat) -> bool:
        """Whoever sits there will be."""
        return self.nodes[seat.node_id].deadline_s is not None

    def running(self) -> tuple[tuple[ModelRef, PlannedPipeline], ...]:
        """The plan's pipelines on the nodes that sit in them now; vacant ones left out."""
        return tuple(
            (pipeline.model, pipeline.as_planned())
            for pipeline in self.wanted()
            if all(seat.node_id for seat in pipeline.seats)
        )

    # Formations

    def form(self, pipeline: Pipeline, formation: Formation, now_s: float) -> None:
        """The pipeline's members are asked to form."""
        for member in formation.members:
            other = self._by_process.get(member.incarnation)
            need(other is None, f"{member.node_id} is in a formation of its own")
        pipeline.form(formation)
        self._enter(pipeline, formation, now_s)

    def _enter(self, pipeline: Pipeline, formation: Formation, now_s: float) -> None:
        self._by_formation[formation.formation_id] = pipeline
        for member in formation.members:
            self._by_process[member.incarnation] = pipeline
        self._belong(formation, now_s)

    def _belong(self, formation: Formation, now_s: float) -> None:
        formation_id = None if formation.forming else formation.formation_id
        for member in formation.members:
            leads = member is formation.head and not formation.forming
            self.liveness.belong(member.incarnation, formation_id, now_s, leads=leads)
            if self.is_there(member):
                self._carry(self.nodes[member.node_id])

    def stand(self, pipeline: Pipeline, now_s: float, kv_block_bytes: int) -> float:
        """All members of its formation do; for how long there was none."""
        down_s = pipeline.stand(now_s, kv_block_bytes)
        if pipeline.formation is not None:
            for member in pipeline.formation.members:
                self.nodes[member.node_id].serve(now_s)
            self._belong(pipeline.formation, now_s)
        return down_s

    def end_formation(
        self, pipeline: Pipeline, settings: ClusterSettings, cause: str, now_s: float
    ) -> Formation:
        """The pipeline's formation is no more."""
        formation = pipeline.fall(settings, cause, now_s)
        del self._by_formation[formation.formation_id]
        for member in formation.members:
            del self._by_process[member.incarnation]
            self.liveness.belong(member.incarnation, "", now_s)
            if self.is_there(member):
                self._carry(self.nodes[member.node_id])
        return formation

    def start_over(self, settings: ClusterSettings, now_s: float) -> list[Formation]:
        """Every pipeline ends, and with it the plan: the next is made for these settings."""
        ended = []
        self.basis = settings.basis
        for pipeline in list(self.pipelines.values()):
            if pipeline.formation is not None:
                ended.append(self.end_formation(pipeline, settings, "plan dropped", now_s))
            self.remove(pipeline)
        self.plan = None
        return ended

    def pipeline(self, formation_id: str) -> Pipeline | None:
        """The pipeline that a living formation serves."""
        return self._by_formation.get(formation_id)

    def pipeline_of(self, node: Node) -> Pipeline | None:
        """The pipeline in whose formation the node's process is."""
        return self._by_process.get(node.incarnation) if node.facts is not None else None

    def serves(self, node: Node) -> bool:
        """Its process is in a formation, of the plan or of one before."""
        return self.pipeline_of(node) is not None

    def living(self, formation: Formation) -> tuple[Member, ...]:
        """Members that are still there."""
        return tuple(m for m in formation.members if self.is_there(m))

    def trusts(self, formation: Formation, now_s: float) -> bool:
        """Every member was heard from just now, by this very controller process."""
        return all(self.liveness.trusts(m.incarnation, now_s) for m in formation.members)

    def sampled(self, formation: Formation) -> int:
        """Tokens of its head, as far as beats have told."""
        return self.liveness.sampled(formation.head.incarnation)

    def has_work(self, formation: Formation) -> bool:
        """Its head has generations that are not done, as far as beats have told."""
        return self.liveness.has_work(formation.head.incarnation)

    def head(self, formation: Formation) -> Node:
        """The node that leads it."""
        return self.nodes[formation.head.node_id]

    def draining(self, pipeline: Pipeline) -> bool:
        """Some stage's node will be taken away."""
        nodes = (self.nodes.get(seat.node_id) for seat in pipeline.seats)
        return any(node is not None and node.deadline_s is not None for node in nodes)


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
