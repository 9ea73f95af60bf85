"""Nodes, and the pipelines that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from services.common.errors import InvalidArgument
from services.common.phases import PipelinePhase
from services.placement.estimate.catalogue import Gpu, HardwareCatalogue

MAX_NODES = 4096
MAX_BACKEND_CHARS = 64
LEAST_SPEED = 1e-6  # what is slower counts as this: times stay finite


@dataclass(frozen=True)
class NodeClass:
    """What nodes can have in common: equal classes are interchangeable in a plan."""

    type_name: str
    gpu: Gpu
    gpu_count: int
    memory_bytes: int
    speed: float
    network_gbps: float
    burst_gbps: float
    price_per_hour: float
    pool: str = ""
    spot: bool = False
    interruptions_per_hour: float = 0.0
    backend: str = ""
    """What computes its stages: nodes of two backends form no pipeline."""

    @property
    def performance(self) -> NodeClass:
        """What decides its speed, and with whom it forms pipelines: the class without price, pool
        and market."""
        return replace(self, price_per_hour=0.0, pool="", spot=False, interruptions_per_hour=0.0)


@dataclass(frozen=True)
class CandidateNode:
    """A machine that can hold one stage."""

    node_id: str
    kind: NodeClass


@dataclass(frozen=True)
class PlacedStage:
    """Layers [start, end) on the first `tp` devices of a node."""

    node: CandidateNode
    start: int
    end: int
    tp: int

    @property
    def layers(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class PlacedPipeline:
    """Stages, head first."""

    stages: tuple[PlacedStage, ...]
    phase: PipelinePhase = PipelinePhase.BOTH

    @cached_property
    def alike(self) -> tuple[tuple[tuple[NodeClass, int, int, int], ...], PipelinePhase]:
        """What pipelines have in common that differ in their nodes alone."""
        stages = ((stage.node.kind, stage.start, stage.end, stage.tp) for stage in self.stages)
        return tuple(stages), self.phase

    @property
    def cost_per_hour(self) -> float:
        return sum(stage.node.kind.price_per_hour for stage in self.stages)

    @property
    def backends(self) -> tuple[str, ...]:
        """What computes its stages, in their order, each once: one, where it can be at all."""
        return tuple(dict.fromkeys(stage.node.kind.backend for stage in self.stages))

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(stage.node.node_id for stage in self.stages)

    def on(self, nodes: Mapping[str, CandidateNode]) -> PlacedPipeline:
        """The same on other nodes, by the ids of its own."""
        stages = (replace(stage, node=nodes[stage.node.node_id]) for stage in self.stages)
        return replace(self, stages=tuple(stages))


@dataclass(frozen=True)
class Workload:
    """Mean prompt and output tokens of a request, and the rate to carry (0 for saturation)."""

    input_tokens: int = 763
    output_tokens: int = 232
    arrival_rate_rps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            if not 1 <= getattr(self, name) <= 1 << 24:
                raise InvalidArgument(f"{name} must be from 1 to {1 << 24}", field=name)
        if not 0 <= self.arrival_rate_rps < 1e9:
            raise InvalidArgument(
                "arrival_rate_rps must be from 0 to 1e9", field="arrival_rate_rps"
            )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def described(
    catalogue: HardwareCatalogue,
    *,
    instance_type: str = "",
    device_type: str = "",
    device_count: int = 0,
    memory_bytes: int = 0,
    relative_speed: float = 0.0,
    price_per_hour: float = 0.0,
    pool: str = "",
    spot: bool = False,
    interruptions_per_hour: float = 0.0,
    backend: str = "",
) -> NodeClass:
    """The class of a node that names an instance type or describes its devices; 0 is default."""
    for name, number in (
        ("price_per_hour", price_per_hour),
        ("relative_speed", relative_speed),
        ("interruptions_per_hour", interruptions_per_hour),
    ):
        if not math.isfinite(number) or not 0 <= number < 1e6:
            raise InvalidArgument(f"{name} must be from 0 to 1e6", field=name)
    if len(backend) > MAX_BACKEND_CHARS or not backend.isprintable():
        raise InvalidArgument(
            f"backend has at most {MAX_BACKEND_CHARS} printable characters", field="backend"
        )
    if not 0 <= memory_bytes <= 1 << 50:
        raise InvalidArgument("memory_bytes must be from 0 to 2**50", field="memory_bytes")
    if instance_type:
        kind = catalogue.instance(instance_type)
        gpu, count = catalogue.gpu(kind.gpu), kind.gpu_count
        network, burst = kind.network_gbps, kind.burst_gbps
        price = price_per_hour or kind.price_per_hour
    elif device_type:
        gpu, count = catalogue.gpu(device_type), device_count or 1
        network, burst, price = 10.0, 10.0, price_per_hour
    else:
        raise InvalidArgument("a node needs instance_type or device_type", field="instance_type")
    if not 1 <= count <= 64:
        raise InvalidArgument("device_count must be from 1 to 64", field="device_count")
    return NodeClass(
        type_name=instance_type or device_type,
        gpu=gpu,
        gpu_count=count,
        memory_bytes=memory_bytes or round(gpu.memory_gb * 1e9),
        speed=max(LEAST_SPEED, relative_speed or 1.0),
        network_gbps=network,
        burst_gbps=burst,
        price_per_hour=price,
        pool=pool or instance_type or device_type,
        spot=spot,
        interruptions_per_hour=interruptions_per_hour,
        backend=backend,
    )


def check_nodes(nodes: Sequence[CandidateNode]) -> None:
    """At least one node, not absurdly many, each id once."""
    if not nodes:
        raise InvalidArgument("no nodes: at least one GPU is needed", field="nodes")
    if len(nodes) > MAX_NODES:
        raise InvalidArgument(f"over {MAX_NODES} nodes", field="nodes")
    seen: set[str] = set()
    for node in nodes:
        if not node.node_id or len(node.node_id) > 256:
            raise InvalidArgument("node_id must have 1 to 256 characters", field="node_id")
        if node.node_id in seen:
            raise InvalidArgument(f"node {node.node_id!r} is named twice", field="node_id")
        seen.add(node.node_id)


def by_backend(nodes: Sequence[CandidateNode]) -> dict[str, list[CandidateNode]]:
    """Nodes that may share a pipeline, in their order."""
    groups: dict[str, list[CandidateNode]] = {}
    for node in nodes:
        groups.setdefault(node.kind.backend, []).append(node)
    return groups


@dataclass(frozen=True)
class Inventory:
    """Nodes by class, in order of first appearance."""

    kinds: tuple[NodeClass, ...]
    nodes: tuple[tuple[CandidateNode, ...], ...] = field(repr=False)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.nodes)


def inventory(nodes: Iterable[CandidateNode]) -> Inventory:
    groups: dict[NodeClass, list[CandidateNode]] = {}
    for node in nodes:
        groups.setdefault(node.kind, []).append(node)
    return Inventory(tuple(groups), tuple(tuple(group) for group in groups.values()))
