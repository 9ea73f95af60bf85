"""How much of its peak a device reaches: efficiencies by GPU type, network and reserve."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from services.common.errors import InvalidArgument
from services.common.yaml_file import Row, read_yaml
from services.placement.estimate.catalogue import (
    DATA,
    Gpu,
    HardwareCatalogue,
    Name,
    Positive,
)
from services.placement.estimate.engine import REPLAYED_ONLY, EngineProfile

Share = Annotated[float, Field(gt=0, le=1.5, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]

LOW_POWER_WATTS = 100.0


class Efficiency(Row):
    """One GPU type.

    `mfu` and `mbu` are the shares of peak arithmetic and peak bandwidth that matrix products reach;
    `attention_mbu` that of reading the KV cache; `launch_us` is spent on each operation; matrix
    products compute whole tiles of `tile_tokens` rows.
    """

    mfu: Share = 1.0
    mbu: Share = 1.0
    attention_mbu: Share | None = None
    launch_us: NotNegative = 0.0
    tile_tokens: int = Field(default=0, ge=0, le=4096)
    reserve_tokens: int | None = Field(default=None, ge=0, le=1 << 20)
    source: str = ""


class LinkRate(Row):
    """Replaces a link's measured all-reduce rate."""

    bus_gb_per_s: Positive
    latency_us: NotNegative


class NetworkEfficiency(Row):
    """Between nodes: burst or sustained rate, what one TCP flow carries, flows a hop."""

    burst: bool
    hop_latency_us: NotNegative
    flow_gbps: Positive | None = None
    flows: int = Field(default=1, ge=1, le=256)


class Calibration(Row):
    """A whole set. GPU types that `gpus` does not name get `low_power` if they draw little (such
    cards do not hold their clock under load), else `default`."""

    name: Name
    memory_utilisation: Annotated[float, Field(gt=0, le=1)]
    max_sequences: int = Field(ge=1, le=1 << 20)
    reserve_tokens: int = Field(ge=0, le=1 << 20)
    reserve_fixed: NotNegative
    reserve_split: NotNegative
    network: NetworkEfficiency
    links: dict[str, LinkRate] = Field(default_factory=dict)
    default: Efficiency
    low_power: Efficiency | None = None
    gpus: dict[str, Efficiency]
    engine: EngineProfile | None = None
    """What the engines take beside that. Where it is given, plans promise the rate at which
    requests come and go, not that of batches that begin and end together."""

    @field_validator("engine")
    @classmethod
    def _of_no_recording(cls, engine: EngineProfile | None) -> EngineProfile | None:
        if engine is not None and engine.stages:
            raise ValueError(f"stages: {REPLAYED_ONLY}")
        return engine

    def efficiency(self, gpu: Gpu) -> Efficiency:
        if gpu.name in self.gpus:
            return self.gpus[gpu.name]
        if self.low_power is not None and gpu.tdp_watts <= LOW_POWER_WATTS:
            return self.low_power
        return self.default

    def all_reduce(self, catalogue: HardwareCatalogue, gpu: Gpu, n: int) -> tuple[float, float]:
        """Bus bandwidth in bytes/s and latency in seconds among n devices."""
        if gpu.link in self.links:
            rate = self.links[gpu.link]
            return rate.bus_gb_per_s * 1e9, rate.latency_us * 1e-6
        ranks = catalogue.link(gpu).among(n)
        return ranks.bus_gb_per_s * 1e9, ranks.latency_us * 1e-6

    def network_bytes_per_s(self, network_gbps: float, burst_gbps: float) -> float:
        """What one hop carries on a node with these rates."""
        gbps = burst_gbps if self.network.burst else network_gbps
        if self.network.flow_gbps is not None:
            gbps = min(gbps, self.network.flow_gbps * self.network.flows)
        return gbps * 1e9 / 8


@cache
def load_calibration(name_or_path: str) -> Calibration:
    """`nominal`, `measured`, or a file that `shunt plan calibrate` wrote."""
    if name_or_path in ("nominal", "measured"):
        return read_yaml(DATA / f"{name_or_path}.yaml", Calibration)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise InvalidArgument(
            "the calibration is nominal, measured, or a YAML file", field="calibration"
        )
    return read_yaml(path, Calibration)
