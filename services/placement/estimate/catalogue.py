"""GPUs, instance types and links, from YAML files that a schema checks.

A user adds a type by a directory with files of the same form; a name given again replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from services.common.errors import NotFound
from services.common.yaml_file import Row, read_yaml

DATA = Path(__file__).parent / "data"
Positive = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class Gpu(Row):
    """One device; memory in GB (1e9), dense fp16 rate."""

    name: Name
    memory_gb: Positive
    bandwidth_gb_per_s: Positive
    fp16_tflops: Positive
    link: Name
    tdp_watts: Positive = 300.0
    source: str = ""


class LinkRanks(Row):
    """All-reduce over n devices: bus bandwidth, and the time of a small message."""

    n: int = Field(ge=2, le=1024)
    bus_gb_per_s: Positive
    latency_us: Positive


class NetworkLink(Row):
    """What joins the devices of one instance."""

    name: Name
    ranks: tuple[LinkRanks, ...] = Field(min_length=1)
    source: str = ""

    def among(self, n: int) -> LinkRanks:
        """The entry for n devices, or the next larger, or the largest."""
        ordered = sorted(self.ranks, key=lambda row: row.n)
        return next((row for row in ordered if row.n >= n), ordered[-1])


class InstanceType(Row):
    """What a cloud rents out; network sustained and in bursts."""

    name: Name
    gpu: Name
    gpu_count: int = Field(ge=1, le=64)
    network_gbps: Positive
    burst_gbps: Positive
    price_per_hour: float = Field(ge=0, lt=1e6, allow_inf_nan=False)
    vcpus: int = Field(default=0, ge=0)
    memory_gib: float = Field(default=0, ge=0)


class _Gpus(Row):
    gpus: tuple[Gpu, ...]


class _Instances(Row):
    instances: tuple[InstanceType, ...]


class _Links(Row):
    links: tuple[NetworkLink, ...]


@dataclass(frozen=True)
class HardwareCatalogue:
    """Everything that can be named."""

    gpus: dict[str, Gpu]
    links: dict[str, NetworkLink]
    instances: dict[str, InstanceType]

    def gpu(self, name: str) -> Gpu:
        return _named(self.gpus, name, "device_type")

    def link(self, gpu: Gpu) -> NetworkLink:
        return self.links[gpu.link]

    def instance(self, name: str) -> InstanceType:
        return _named(self.instances, name, "instance_type")


Item = TypeVar("Item")


def _named(items: dict[str, Item], name: str, field: str) -> Item:
    if name not in items:
        known = ", ".join(sorted(items))
        what = field.replace("_", " ")
        raise NotFound(f"unknown {what} {name[:64]!r}; known: {known}", field=field)
    return items[name]


@cache
def load_catalogue(extra: Path | None = None) -> HardwareCatalogue:
    """The shipped catalogue, overlaid with the files of another directory."""
    if extra is not None and not extra.is_dir():
        raise NotFound(f"{extra.name} is no directory", field="catalogue")
    gpus: dict[str, Gpu] = {}
    links: dict[str, NetworkLink] = {}
    instances: dict[str, InstanceType] = {}
    for directory in (DATA, extra):
        if directory is None:
            continue
        if (path := directory / "gpus.yaml").exists():
            gpus |= {row.name: row for row in read_yaml(path, _Gpus).gpus}
        if (path := directory / "links.yaml").exists():
            links |= {row.name: row for row in read_yaml(path, _Links).links}
        if (path := directory / "instances.yaml").exists():
            instances |= {row.name: row for row in read_yaml(path, _Instances).instances}
    for gpu in gpus.values():
        _named(links, gpu.link, "link")
    for instance in instances.values():
        _named(gpus, instance.gpu, "gpu")
    return HardwareCatalogue(gpus, links, instances)
