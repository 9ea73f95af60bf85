"""A plan whose pipelines all have the stages that the settings give; placement is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.nodes import NodeFacts, StageSpec
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.degrees import check_degree, check_devices
from services.controller.core.cluster.plan import (
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.replanning import Cause
from services.controller.core.cluster.why import Why
from services.controller.core.model_facts import ModelFacts


def plan_of_stages(question: AskPlan, stages: Sequence[StageSpec]) -> Plan:
    """As many pipelines as are asked for, of nodes in the order in which they are named, or as
    there are nodes for; each of nodes of one backend, which serves the model. Raises
    InvalidArgument for stages that the model or its node cannot have, and FailedPrecondition for
    too few nodes."""
    (goal,) = question.goals
    check_stages(stages, goal.facts.layer_count)
    for stage in stages:
        check_degree(goal.facts, stage.tp_degree, "stages")
    groups = _groups(question.nodes, goal.facts, len(stages))[: question.pipelines]
    if not groups:
        raise FailedPrecondition(
            f"{len(stages)} stages need as many nodes: there are {len(question.nodes)}"
            f"{_of_which(question.nodes, goal.facts)}",
            field="stages",
        )
    for group in groups:
        for stage, node in zip(stages, group, strict=True):
            check_devices(stage.tp_degree, node.shape.device_count, node.node_id, "stages")
    pipelines = tuple(
        PlannedPipeline(
            f"pipeline-{place}",
            tuple(
                PlannedStage(stage.layers, stage.tp_degree, node.shape, node.node_id)
                for stage, node in zip(stages, group, strict=True)
            ),
            1.0,
        )
        for place, group in enumerate(groups, 1)
    )
    why = Why(("the settings give the stages: nothing was compared",), causes=(Cause.FIRST.value,))
    deployment = Deployment(goal.model, goal.aim.objective, pipelines)
    return Plan(question.number, (deployment,), why)


def _groups(
    nodes: Sequence[NodeFacts], facts: ModelFacts, size: int
) -> list[tuple[NodeFacts, ...]]:
    """So many nodes each, of one backend; in turn of each backend, as long as it has so many."""
    by_backend: dict[str, list[NodeFacts]] = {}
    for node in nodes:
        if facts.is_served_by(node.shape.backend):
            by_backend.setdefault(node.shape.backend, []).append(node)
    turns = zip_longest(*(_parts(some, size) for some in by_backend.values()))
    return [group for turn in turns for group in turn if group is not None]


def _parts(nodes: Sequence[NodeFacts], size: int) -> Iterator[tuple[NodeFacts, ...]]:
    """Without those that are over."""
    return zip(*[iter(nodes)] * size, strict=False)


def _of_which(nodes: Sequence[NodeFacts], facts: ModelFacts) -> str:
    """Words for nodes of several backends; none for those of one that serves the model."""
    counts = Counter(node.shape.backend for node in nodes)
    if len(counts) == 1 and all(map(facts.is_served_by, counts)):
        return ""
    told = (
        f"{count} of {name}" + ("" if facts.is_served_by(name) else ", which cannot serve it")
        for name, count in counts.items()
    )
    return f", {'; '.join(told)}"


def check_stages(stages: Sequence[StageSpec], layer_count: int) -> None:
    """Raises InvalidArgument for stages of another number of layers."""
    if stages[-1].layers.end != layer_count:
        raise InvalidArgument(
            f"the model has {layer_count} layers, the stages {stages[-1].layers.end}",
            field="stages",
        )
