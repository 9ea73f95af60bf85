"""What the stages of a plan compute with: one backend a pipeline, for rows pass between no two, and
one that serves its model; and on how many devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from services.common.errors import InvalidArgument
from services.common.nodes import NodeShape
from services.controller.core.cluster.plan import ANY_SHAPE, PlannedPipeline, PlannedStage
from services.controller.core.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class KnownShapes:
    """Of what a stage may name: nodes that are there, and offers."""

    nodes: Mapping[str, NodeShape] = field(default_factory=dict)
    offers: Mapping[str, NodeShape] = field(default_factory=dict)

    def backend_of(self, stage: PlannedStage) -> str:
        """The node's, else what the shape says, else the offer's; empty where nothing is said."""
        node, offer = self.nodes.get(stage.node_id), self.offers.get(stage.offer_id)
        told = (node and node.backend) or stage.shape.backend
        return told or (offer.backend if offer is not None else "")

    def any_backend_for(self, facts: ModelFacts) -> str:
        """What there is that serves the model, nodes first."""
        there = (shape.backend for shape in (*self.nodes.values(), *self.offers.values()))
        return next(filter(facts.is_served_by, there), NodeShape(0, 1.0).backend)

    def devices_of(self, stage: PlannedStage) -> int | None:
        """The node's, else the offer's, else what the shape says; of a stage that any node may
        take, the most that one of its backend has. None where nothing is known."""
        named = self.nodes.get(stage.node_id) or self.offers.get(stage.offer_id)
        if named is None and replace(stage.shape, backend=ANY_SHAPE.backend) != ANY_SHAPE:
            named = stage.shape
        if named is not None:
            return named.device_count
        there = () if stage.node_id else (*self.nodes.values(), *self.offers.values())
        return max((one.device_count for one in there if agree(one, stage.shape)), default=None)


def with_backend(
    pipeline: PlannedPipeline, facts: ModelFacts, known: KnownShapes, where: str
) -> PlannedPipeline:
    """The pipeline with its backend in the shape of every stage; where none is named it is one that
    there is. Raises InvalidArgument for several, and for one that does not serve the model."""
    told: dict[str, int] = {}
    for place, stage in enumerate(pipeline.stages):
        if backend := known.backend_of(stage):
            told.setdefault(backend, place)
    backend = next(iter(told), "") or known.any_backend_for(facts)
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
