"""Clusters from YAML, and pipelines from the command line's short form."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.errors import InvalidArgument, NotFound
from services.common.yaml_file import Row, read_yaml
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import (
    MAX_BACKEND_CHARS,
    MAX_NODES,
    CandidateNode,
    NodeClass,
    PlacedPipeline,
    PlacedStage,
    described,
)


class InstanceRow(Row):
    """Instances of one type in one pool; no price takes the catalogue's."""

    type: str = Field(min_length=1, max_length=64)
    count: int = Field(default=1, ge=0, le=MAX_NODES)
    price_per_hour: float = Field(default=0, ge=0, lt=1e6, allow_inf_nan=False)
    pool: str = Field(default="", max_length=128)
    spot: bool = False
    interruptions_per_hour: float = Field(default=0, ge=0, lt=1e3, allow_inf_nan=False)
    backend: str = Field(default="", max_length=MAX_BACKEND_CHARS)
    """What computes on them: instances of two backends share no pipeline."""


class ClusterFile(Row):
    """The whole file."""

    instances: tuple[InstanceRow, ...] = Field(max_length=MAX_NODES)


def read_cluster(path: Path, catalogue: HardwareCatalogue) -> tuple[CandidateNode, ...]:
    """The nodes of a cluster file, named by type and number. Raises InvalidArgument, naming the
    field, and NotFound for a file that cannot be read."""
    nodes: list[CandidateNode] = []
    for index, row in enumerate(read_yaml(path, ClusterFile).instances):
        try:
            kind = described(
                catalogue,
                instance_type=row.type,
                price_per_hour=row.price_per_hour,
                pool=row.pool,
                spot=row.spot,
                interruptions_per_hour=row.interruptions_per_hour,
                backend=row.backend,
            )
        except NotFound as error:
            raise InvalidArgument(error.message, field=f"instances.{index}.type") from None
        if len(nodes) + row.count > MAX_NODES:
            raise InvalidArgument(f"over {MAX_NODES} instances", field=f"instances.{index}.count")
        for _ in range(row.count):
            nodes.append(CandidateNode(f"{row.type}-{len(nodes)}", kind))
    if not nodes:
        raise InvalidArgument("the cluster has no instances: zero GPUs", field="instances")
    return tuple(nodes)


def of_type(name: str, catalogue: HardwareCatalogue, field: str) -> NodeClass:
    """An instance type that the command line names; raises NotFound, of this field."""
    try:
        return described(catalogue, instance_type=name)
    except NotFound as error:
        raise NotFound(error.message, field=field) from None


def parse_pipeline(text: str, catalogue: HardwareCatalogue) -> PlacedPipeline:
    """`type:layers[:tp],...`, TP defaulting to the GPU count."""
    stages: list[PlacedStage] = []
    start = 0
    for index, part in enumerate(text.split(",")):
        fields = part.strip().split(":")
        if len(fields) not in (2, 3) or not all(f.isdecimal() and len(f) < 7 for f in fields[1:]):
            raise InvalidArgument(
                f"stage {index} is {part[:60]!r}, not type:layers[:tp]", field="pipeline"
            )
        kind = of_type(fields[0], catalogue, "pipeline")
        layers, tp = int(fields[1]), int(fields[2]) if len(fields) == 3 else kind.gpu_count
        stages.append(
            PlacedStage(CandidateNode(f"{fields[0]}-{index}", kind), start, start + layers, tp)
        )
        start += layers
    return PlacedPipeline(tuple(stages))
