"""The plan: which pipelines there are to be. A value, whoever made it: placement or an operator.

A plan that does not hold together cannot be made: every pipeline covers every layer of its model
once, a node is in one stage, and names are used once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import BACKENDS, MOST_DEVICES, NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.why import Why

MAX_PIPELINES = 4096
"""Of a plan."""
MAX_STAGES = 256
"""Of a pipeline."""
MAX_NAME_CHARS = 128
MAX_NUMBER = 2**63 - 1
ANY_SHAPE = NodeShape(0, 1.0, backend="")
"""Every node has at least this."""
THROUGHPUT = "throughput"
"""The objective of who names none."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage for a node, for a node of an offer, or for any node of a shape."""

    layers: LayerRange
    tp_degree: int = 1
    shape: NodeShape = ANY_SHAPE
    """What the node, and whatever replaces it, is able to do."""
    node_id: str = ""
    offer_id: str = ""


@dataclass(frozen=True, slots=True)
class PlannedPipeline:
    """A pipeline of the plan; stages head first."""

    pipeline_id: str
    stages: tuple[PlannedStage, ...]
    weight_tokens_per_s: float
    """Estimated throughput: shares of new requests are in proportion to it."""
    phase: PipelinePhase = PipelinePhase.BOTH
    onward: tuple[tuple[str, float], ...] = ()
    """Of a prefill pipeline: those that it hands generations on to, and in which proportion; empty:
    to all there are, by their weights."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model and the pipelines that serve it; it sleeps when there is none."""

    model: ModelRef
    objective: str
    """What the pipelines were chosen for."""
    pipelines: tuple[PlannedPipeline, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Raises InvalidArgument, naming the field, for one that does not hold together."""

    number: int
    """Of two plans the higher number counts."""
    deployments: tuple[Deployment, ...]
    why: Why = field(default_factory=Why)

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MAX_NUMBER:
            raise InvalidArgument(f"number lies in [1, {MAX_NUMBER}]", field="number")
        if not self.deployments:
            raise InvalidArgument("a plan has a deployment at least", field="deployments")
        if sum(1 for _ in self.pipelines()) > MAX_PIPELINES:
            raise InvalidArgument(f"at most {MAX_PIPELINES} pipelines", field="deployments")
        _check_once("pipeline_id", [p.pipeline_id for _, p in self.pipelines()])
        _check_once("node_id", [s.node_id for s in self.stages() if s.node_id])
        _check_once("model", [deployment.model.model_id for deployment in self.deployments])
        for index, deployment in enumerate(self.deployments):
            _check_deployment(deployment, f"deployments[{index}]")

    def pipelines(self) -> Iterator[tuple[Deployment, PlannedPipeline]]:
        """Of all deployments."""
        for deployment in self.deployments:
            for pipeline in deployment.pipelines:
                yield deployment, pipeline

    def stages(self) -> Iterator[PlannedStage]:
        """Of all pipelines."""
        for _, pipeline in self.pipelines():
            yield from pipeline.stages

    @property
    def models(self) -> frozenset[ModelRef]:
        """That it has pipelines for."""
        return frozenset(deployment.model for deployment in self.deployments)

    def node_ids(self) -> frozenset[str]:
        """Nodes that it names."""
        return frozenset(stage.node_id for stage in self.stages() if stage.node_id)

    def renamed(self, names: dict[str, str]) -> Plan:
        """The same plan, with other ids for some pipelines."""

        def named(pipeline: PlannedPipeline) -> PlannedPipeline:
            return replace(
                pipeline,
                pipeline_id=names.get(pipeline.pipeline_id, pipeline.pipeline_id),
                onward=tuple((names.get(to, to), weight) for to, weight in pipeline.onward),
            )

        return replace(
            self,
            deployments=tuple(
                replace(deployment, pipelines=tuple(map(named, deployment.pipelines)))
                for deployment in self.deployments
            ),
        )


def _check_once(field: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidArgument(f"{twice!r} is there more than once", field=field)


def _check_deployment(deployment: Deployment, where: str) -> None:
    for index, pipeline in enumerate(deployment.pipelines):
        _check_pipeline(pipeline, f"{where}.pipelines[{index}]")
        _check_onward(pipeline, deployment, f"{where}.pipelines[{index}].onward")
    ends = {pipeline.stages[-1].layers.end for pipeline in deployment.pipelines}
    if len(ends) > 1:
        raise InvalidArgument(
            "all pipelines of a model have the same last layer", field=f"{where}.pipelines"
        )


def _check_onward(pipeline: PlannedPipeline, deployment: Deployment, where: str) -> None:
    if pipeline.onward and pipeline.phase is not PipelinePhase.PREFILL:
        raise InvalidArgument("a prefill pipeline hands on, and no other", field=where)
    decode = {p.pipeline_id for p in deployment.pipelines if p.phase is not PipelinePhase.PREFILL}
    names = [name for name, _ in pipeline.onward]
    if not decode.issuperset(names) or len(set(names)) != len(names):
        raise InvalidArgument("pipelines of the model that decode, each once", field=where)
    if not all(math.isfinite(weight) and weight > 0 for _, weight in pipeline.onward):
        raise InvalidArgument("finite numbers above 0", field=where)


def _check_pipeline(pipeline: PlannedPipeline, where: str) -> None:
    _check_name(pipeline.pipeline_id, f"{where}.id")
    if not 1 <= len(pipeline.stages) <= MAX_STAGES:
        raise InvalidArgument(f"1 to {MAX_STAGES} stages", field=f"{where}.stages")
    weight = pipeline.weight_tokens_per_s
    if not math.isfinite(weight) or weight < 0:
        raise InvalidArgument(
            "a finite number that is not negative", field=f"{where}.weight_tokens_per_s"
        )
    expected = 0
    for index, stage in enumerate(pipeline.stages):
        place = f"{where}.stages[{index}]"
        if stage.layers.start != expected or stage.layers.end <= stage.layers.start:
            raise InvalidArgument(
                f"the stage begins at layer {expected} and has one at least",
                field=f"{place}.layers",
            )
        if stage.tp_degree < 1:
            raise InvalidArgument("1 at least", field=f"{place}.tp_degree")
        speed = stage.shape.relative_speed
        if stage.shape.backend not in ("", *BACKENDS):
            raise InvalidArgument(f"{' or '.join(BACKENDS)}", field=f"{place}.shape.backend")
        if not 1 <= stage.shape.device_count <= MOST_DEVICES:
            raise InvalidArgument(f"1 to {MOST_DEVICES} devices", field=f"{place}.shape")
        if stage.shape.memory_bytes < 0 or not math.isfinite(speed) or speed <= 0:
            raise InvalidArgument("no bytes below 0, a speed above 0", field=f"{place}.shape")
        expected = stage.layers.end
    backends = {stage.shape.backend for stage in pipeline.stages} - {""}
    if len(backends) > 1:
        names = " and ".join(sorted(backends))
        raise InvalidArgument(
            f"its stages compute with {names}: rows do not pass between them",
            field=f"{where}.stages",
        )


def _check_name(name: str, field: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidArgument(f"1 to {MAX_NAME_CHARS} printable characters", field=field)
