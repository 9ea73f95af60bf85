"""Nodes as every service speaks of them: what one is able to do, who it is, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from services.common.generation import LayerRange, ModelRef
from services.common.machine import NOTHING_KNOWN, MachineFacts

Backend = Literal["native", "vllm"]
"""What computes a node's stages."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)

MOST_STAGES = 8
"""That a node is asked to hold at a time."""
MOST_DEVICES = 64
"""Of a node."""
ASKED_BEATS = 4
"""One of so many heartbeats of a node asks its controller for an answer."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What a node is able to do; a replacement has the shape of what it replaces."""

    memory_bytes: int
    relative_speed: float
    device_type: str = "cpu"
    device_count: int = 1
    """Ranks that may share a stage: devices, or on a CPU processes. Memory is that of all."""
    backend: str = "native"
    """What computes its stages: nodes of two backends form no pipeline. Empty: any."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node that registers."""

    node_id: str
    incarnation: str
    address: str
    pid: int
    shape: NodeShape
    machine: MachineFacts = NOTHING_KNOWN
    """What it runs on."""
    metrics_port: int = 0
    """Where Prometheus asks its process, beside the address; 0 where it cannot."""

    @property
    def metrics_address(self) -> str:
        """host:port; empty where there is none."""
        host = self.address.rpartition(":")[0]
        return f"{host}:{self.metrics_port}" if self.metrics_port else ""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a formation: a node's process and the stage it runs there."""

    node_id: str
    incarnation: str
    address: str
    layers: LayerRange
    tp_degree: int = 1

    @property
    def stage(self) -> StageSpec:
        """What it must hold for that."""
        return StageSpec(self.layers, self.tp_degree)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage that a node is asked to hold."""

    layers: LayerRange
    tp_degree: int = 1
    """Ranks that share it."""


@dataclass(frozen=True, slots=True)
class StageHolding:
    """How a node holds a stage."""

    model: ModelRef
    spec: StageSpec
    held: bool = False
    """In memory, ready for a formation."""
    cached: bool = False
    """Only in the cache of the node's tensor store: there is no room for it beside the others."""
    kv_blocks: int = 0
    """A formation of the stage can have at most this many while all that is asked for is held."""
    numerics_class: str = ""
