"""What the stages of a plan compute with: one backend a pipeline, for rows pass between no two, and
one that serves its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.common.errors import InvalidArgument
from services.common.nodes import NodeShape
from services.controller.core.cluster.plan import PlannedPipeline, PlannedStage
from services.controller.core.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class KnownBackends:
    """Of what a stage may name."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    offers: Mapping[str, str] = field(default_factory=dict)

    def of(self, stage: PlannedStage) -> str:
        """The node's, else what the shape says, else the offer's; empty where nothing is said."""
        told = self.nodes.get(stage.node_id) or stage.shape.backend
        return told or self.offers.get(stage.offer_id, "")

    def any_for(self, facts: ModelFacts) -> str:
        """What there is that serves the model, nodes first."""
        there = (*self.nodes.values(), *self.offers.values())
        return next(filter(facts.is_served_by, there), NodeShape(0, 1.0).backend)


def with_backend(
    pipeline: PlannedPipeline, facts: ModelFacts, known: KnownBackends, where: str
) -> PlannedPipeline:
    """The pipeline with its backend in the shape of every stage; where none is named it is one that
    there is. Raises InvalidArgument for several, and for one that does not serve the model."""
    told: dict[str, int] = {}
    for place, stage in enumerate(pipeline.stages):
        if backend := known.of(stage):
            told.setdefault(backend, place)
    backend = next(iter(told), "") or known.any_for(facts)
    if len(told) > 1:
        other, place = list(told.items())[1]
        raise InvalidArgument(
            f"it computes with {other}, stages[{told[backend]}] with {backend}: "
            "rows do not pass between them",
            field=f"{where}.stages[{place}]",
        )
    if not facts.is_served_by(backend):
        raise InvalidArgument(
            f"{backend} cannot serve the model; {' and '.join(facts.backends)} can",
            field=f"{where}.stages",
        )
    shapes = (replace(stage.shape, backend=backend) for stage in pipeline.stages)
    stages = (
        replace(stage, shape=shape) for stage, shape in zip(pipeline.stages, shapes, strict=True)
    )
    return replace(pipeline, stages=tuple(stages))


def agree(one: NodeShape, other: NodeShape) -> bool:
    """They have one backend, as far as they name any."""
    return one.backend == other.backend or not (one.backend and other.backend)
