"""What the cluster lacks, and the next step towards it: nodes for stages, loads, formations.

Idempotent: it looks at the state alone and may be asked after every event. What changes the state
of record answers with at least one action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.common.nodes import Member, NodeFacts
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    FormPipeline,
    LaunchNode,
    LoadStage,
    LogEvent,
    TerminateNode,
)
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.losses import give_up
from services.controller.core.cluster.membership import (
    Formation,
    Membership,
    Node,
    Pipeline,
    Stage,
    match_shapes,
)
from services.controller.core.cluster.settings import ClusterSettings


class Reconciler:
    """Asks for what is missing."""

    def __init__(self, settings: ClusterSettings, draw_id: Callable[[], str]) -> None:
        self._settings = settings
        self._draw_id = draw_id
        self._asking_plan = False
        self._asked: tuple[NodeFacts, ...] = ()
        """Of which nodes a plan was asked for last."""
        self.plans = Backoff()

    def plan_answered(self) -> None:
        """Placement answered."""
        self._asking_plan = False
        self.plans.succeed()

    def plan_failed(self, reason: str, permanent: bool, now_s: float) -> None:
        """Placement did not, or has none for these nodes."""
        self._asking_plan = False
        settings = self._settings
        self.plans.fail(
            now_s,
            reason,
            first_s=settings.retry_s,
            longest_s=settings.retry_max_s,
            permanent=permanent,
        )

    def advance(self, state: Membership, now_s: float) -> list[Action]:
        """The next steps."""
        if not state.pipelines:
            return [*self._launch_first(state, now_s), *self._plan(state, now_s)]
        actions: list[Action] = []
        for pipeline in state.pipelines:
            for stage in pipeline.stages:
                actions += self._fill(state, pipeline, stage, now_s)
        for pipeline in state.pipelines:
            for stage in pipeline.stages:
                for node_id in (stage.node_id, stage.spare_id):
                    actions += self._load(state, node_id, stage, now_s)
            actions += self._replacement_ready(state, pipeline, now_s)
            actions += self._form(state, pipeline, now_s)
        return actions

    def _launch_first(self, state: Membership, now_s: float) -> list[Action]:
        """Nodes for the first plan that neither are there nor start."""
        if not self._settings.can_launch or now_s < state.first_launches.retry_at_s:
            return []
        lacking, surplus = match_shapes(self._settings.initial, state.staying())
        missing = lacking[: max(0, len(lacking) - len(surplus))]
        launched = [state.launch(shape, now_s) for shape in missing]
        return [action for node in launched for action in _launched(node)]

    def _plan(self, state: Membership, now_s: float) -> list[Action]:
        nodes = [node for node in state.nodes.values() if node.usable]
        enough = len(nodes) >= self._settings.expected_nodes
        first_s = min((node.since_s for node in nodes), default=now_s)
        starting = any(node.facts is None and not node.lost for node in state.nodes.values())
        settled = bool(nodes) and now_s - first_s >= self._settings.settle_s and not starting
        if self._asking_plan or now_s < self.plans.retry_at_s or not (enough or settled):
            return []
        facts = tuple(node.facts for node in nodes if node.facts is not None)
        if self.plans.permanent and facts == self._asked:
            return []
        self.plans.permanent = False
        self._asking_plan, self._asked = True, facts
        return [AskPlan(self._settings.model, facts, self._settings.pipelines)]

    def _fill(
        self, state: Membership, pipeline: Pipeline, stage: Stage, now_s: float
    ) -> list[Action]:
        """Finds a node for a vacant stage or one whose node cannot load it, and a spare for one
        that will be taken away."""
        node, spare = state.nodes.get(stage.node_id), state.nodes.get(stage.spare_id)
        if node is None or self._cannot_load(node, stage):
            found, actions = self._find(state, pipeline, stage, node, now_s)
            stage.node_id = found or stage.node_id
            return [*actions, *self._give_up(node, stage, now_s)] if found else []
        if node.facts is None:
            loaded = self._idle(state, stage, loaded=True)
            if loaded is not None:
                stage.node_id = loaded.node_id
                return [LogEvent("stage_taken", loaded.node_id, pipeline.pipeline_id)]
        elif node.deadline_s is not None and (spare is None or self._cannot_load(spare, stage)):
            found, actions = self._find(state, pipeline, stage, spare, now_s)
            stage.spare_id = found or stage.spare_id
            return [*actions, *self._give_up(spare, stage, now_s)] if found else []
        return []

    def _cannot_load(self, node: Node, stage: Stage) -> bool:
        if node.loading is not None or node.refused != stage.layers:
            return False
        attempts = 1 if stage.given_up else self._settings.load_attempts
        return node.loads.permanent or node.loads.failures >= attempts

    def _give_up(self, node: Node | None, stage: Stage, now_s: float) -> list[Action]:
        """Lets go of a node that could not load its stage."""
        if node is None:
            return []
        give_up(self._settings, stage, node, now_s)
        if not self._settings.can_launch:
            return []
        node.leaving = True
        return [TerminateNode(node.node_id)]

    def _find(
        self,
        state: Membership,
        pipeline: Pipeline,
        stage: Stage,
        instead_of: Node | None,
        now_s: float,
    ) -> tuple[str, list[Action]]:
        idle = self._idle(state, stage, loaded=True) or self._idle(state, stage, loaded=False)
        if idle is not None and (instead_of is None or not self._cannot_load(idle, stage)):
            return idle.node_id, [LogEvent("stage_taken", idle.node_id, pipeline.pipeline_id)]
        if not self._settings.can_launch or now_s < stage.launches.retry_at_s:
            return "", []
        if instead_of is not None and instead_of.loads.permanent:
            return "", []  # one more node of its shape would say the same
        node = state.launch(stage.shape, now_s)
        return node.node_id, _launched(node, pipeline.pipeline_id)

    def _idle(self, state: Membership, stage: Stage, *, loaded: bool) -> Node | None:
        """A node without a place that could run the stage, or that holds its layers; rather not
        one that failed to load what it was given."""
        taken = {s.node_id for p in state.pipelines for s in p.stages}
        taken |= {s.spare_id for p in state.pipelines for s in p.stages}
        for node in sorted(state.nodes.values(), key=lambda n: self._cannot_load(n, stage)):
            if node.node_id in taken or not node.usable:
                continue
            fits = node.shape.memory_bytes >= stage.shape.memory_bytes
            if node.holds(stage.layers) if loaded else fits:
                return node
        return None

    def _load(self, state: Membership, node_id: str, stage: Stage, now_s: float) -> list[Action]:
        node = state.nodes.get(node_id)
        if node is None or node.facts is None or not node.present:
            return []
        if node.loading is not None or node.layers == stage.layers:
            return []
        if node.refused != stage.layers:
            node.loads.succeed()
        elif node.loads.permanent or now_s < node.loads.retry_at_s:
            return []
        elif self._settings.can_launch and self._cannot_load(node, stage):
            return []  # it has had its attempts; the next is another node's
        node.loading, node.layers = stage.layers, None
        facts, model = node.facts, self._settings.model
        incarnation, address = facts.incarnation, facts.address
        return [LoadStage(node_id, incarnation, address, model, stage.layers, stage.tp_degree)]

    def _replacement_ready(
        self, state: Membership, pipeline: Pipeline, now_s: float
    ) -> list[Action]:
        """Every node that will be taken away has a loaded replacement."""
        if not pipeline.is_ready or pipeline.replacement_ready_s is not None:
            return []
        leaving = [s for s in pipeline.stages if state.nodes[s.node_id].deadline_s is not None]
        names = [s.spare_id if s in leaving else s.node_id for s in pipeline.stages]
        members = self._members(state, pipeline, names)
        if not leaving or members is None:
            return []
        if len({node.numerics_class for node in members}) > 1:
            return self._tell_classes(pipeline, members)
        pipeline.replacement_ready_s = now_s
        return [
            LogEvent("replacement_ready", stage.spare_id, pipeline.pipeline_id) for stage in leaving
        ]

    def _form(self, state: Membership, pipeline: Pipeline, now_s: float) -> list[Action]:
        if pipeline.formation is not None or now_s < pipeline.forms.retry_at_s:
            return []
        nodes = self._members(state, pipeline, [stage.node_id for stage in pipeline.stages])
        if nodes is None:
            return []
        if len({node.numerics_class for node in nodes}) > 1:
            return self._tell_classes(pipeline, nodes)
        members = tuple(
            Member(node.node_id, node.facts.incarnation, node.facts.address, stage.layers)
            for node, stage in zip(nodes, pipeline.stages, strict=True)
            if node.facts is not None
        )
        blocks = min(node.kv_blocks for node in nodes)
        pipeline.formation = formation = Formation(self._draw_id(), members, blocks)
        return [
            FormPipeline(
                formation.formation_id,
                pipeline.pipeline_id,
                self._settings.model,
                formation.members,
                formation.kv_blocks,
            )
        ]

    def _members(
        self, state: Membership, pipeline: Pipeline, node_ids: Iterable[str]
    ) -> list[Node] | None:
        """The nodes, a stage each; None unless all of them hold their layers."""
        nodes = [state.nodes.get(node_id) for node_id in node_ids]
        held = [
            node
            for node, stage in zip(nodes, pipeline.stages, strict=True)
            if node is not None and node.holds(stage.layers)
        ]
        return held if len(held) == len(nodes) else None

    def _tell_classes(self, pipeline: Pipeline, nodes: Iterable[Node]) -> list[Action]:
        """Stages of different arithmetic form no pipeline; said once."""
        classes = ", ".join(sorted({node.numerics_class for node in nodes}))
        if pipeline.unlike == classes:
            return []
        pipeline.unlike = classes
        return [LogEvent("numerics_differ", "", pipeline.pipeline_id, {"classes": classes})]


def _launched(node: Node, pipeline_id: str = "") -> list[Action]:
    """Starts the node, and says so; those for the first plan are of no pipeline yet."""
    return [
        LaunchNode(node.node_id, node.shape),
        LogEvent("node_launched", node.node_id, pipeline_id),
    ]
