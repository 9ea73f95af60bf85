"""Nodes as every service speaks of them: what one is able to do, who it is, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.generation import LayerRange


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What a node is able to do; a replacement has the shape of what it replaces."""

    memory_bytes: int
    relative_speed: float
    device_type: str = "cpu"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node that registers."""

    node_id: str
    incarnation: str
    address: str
    pid: int
    shape: NodeShape


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a formation: a node's process and the layers it runs there."""

    node_id: str
    incarnation: str
    address: str
    layers: LayerRange
