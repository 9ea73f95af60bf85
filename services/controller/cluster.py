"""Nodes, pipelines, formations and their replacement. Events in, actions out.

A drain: the replacement (an idle node, or a new one) loads the interrupted node's layers while the
old formation serves on. When it has, routes change, the old formation is drained (every generation
sealed behind its last step), dissolved, and the survivors form the next formation with the new
node. A survivor is a member of one formation at a time: it has one KV cache and one batch of steps,
and giving it two would halve both for the sake of some tens of milliseconds. Meanwhile readers
resume on the other pipelines; when there is none their Resume waits for the new formation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.exchange import Route
from services.common.generation import LayerRange, ModelRef
from services.controller.actions import (
    Action,
    Beat,
    NodeFacts,
    NodeShape,
    NodeView,
    PipelineView,
    PlannedPipeline,
)
from services.controller.ledger import Head


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Shape and timings (seconds) of the cluster."""

    model: ModelRef
    initial: tuple[NodeShape, ...] = ()
    """Nodes to launch when there is no snapshot; empty: they come by themselves."""
    expected_nodes: int = 4
    """A plan is asked for when so many are idle, or `settle_s` after the first."""
    pipelines: int = 2
    can_launch: bool = True
    """The provider starts nodes; else a replacement must register by itself."""
    heartbeat_interval_s: float = 0.25
    node_lost_s: float = 1.0
    """A node silent for this long is lost."""
    restart_grace_s: float = 3.0
    """Nobody counts as dead for this long after a restart, but for what the edge knows."""
    settle_s: float = 10.0
    launch_timeout_s: float = 60.0
    """A launched node that does not register within this is given up."""
    retry_s: float = 0.5
    """Pause before a failed launch, plan, load or form is tried again."""
    max_positions: int = 8192
    block_positions: int = 16


class Cluster:
    """The cluster as the controller knows it."""

    def __init__(self, settings: ClusterSettings, draw_id: Callable[[], str], now_s: float) -> None:
        """`draw_id` gives unique strings: ids of formations."""

    @classmethod
    def recover(
        cls, settings: ClusterSettings, draw_id: Callable[[], str], snapshot: str, now_s: float
    ) -> Cluster:
        """The cluster as its last snapshot had it; every node is given `restart_grace_s`."""
        raise NotImplementedError

    def start(self, now_s: float) -> list[Action]:
        """First actions after __init__ or recover."""
        raise NotImplementedError

    def register(self, facts: NodeFacts, now_s: float) -> list[Action]:
        """A node is there; the same incarnation may say so again. Raises StaleEpoch for an older
        incarnation of a node that has a newer one."""
        raise NotImplementedError

    def heartbeat(self, beat: Beat, now_s: float) -> list[Action]:
        """Raises NotFound when the node must register (again)."""
        raise NotImplementedError

    def node_gone(self, node_id: str, incarnation: str, cause: str, now_s: float) -> list[Action]:
        """The edge knows that the process is dead (its exit was seen, or its connection was
        refused); `incarnation` may be empty for a launched process that never registered."""
        raise NotImplementedError

    def launch_failed(self, node_id: str, reason: str, now_s: float) -> list[Action]:
        """The provider could not start it."""
        raise NotImplementedError

    def plan_ready(self, pipelines: tuple[PlannedPipeline, ...], now_s: float) -> list[Action]:
        """Placement's answer to AskPlan."""
        raise NotImplementedError

    def plan_failed(self, reason: str, now_s: float) -> list[Action]:
        """Asked again after `retry_s`."""
        raise NotImplementedError

    def load_done(
        self, node_id: str, incarnation: str, layers: LayerRange, kv_blocks: int, now_s: float
    ) -> list[Action]:
        """The node holds these layers."""
        raise NotImplementedError

    def load_failed(
        self, node_id: str, incarnation: str, reason: str, now_s: float
    ) -> list[Action]:
        """Tried again after `retry_s`."""
        raise NotImplementedError

    def formed(self, formation_id: str, now_s: float) -> list[Action]:
        """All members stand."""
        raise NotImplementedError

    def form_failed(self, formation_id: str, reason: str, now_s: float) -> list[Action]:
        """Some member does not; dissolved, and formed anew after `retry_s`."""
        raise NotImplementedError

    def drained(self, formation_id: str, sealed: int, now_s: float) -> list[Action]:
        """Every generation of the formation is sealed."""
        raise NotImplementedError

    def drain_failed(self, formation_id: str, reason: str, now_s: float) -> list[Action]:
        """The head did not answer; the formation is dissolved all the same."""
        raise NotImplementedError

    def interrupt(self, node_id: str, notice_s: float, kill: bool, now_s: float) -> list[Action]:
        """A notice, or an order to kill. Raises NotFound. The same notice twice changes nothing."""
        raise NotImplementedError

    def tick(self, now_s: float) -> list[Action]:
        """Silence, timeouts and retries; call it every 0.1 s or so."""
        raise NotImplementedError

    def routes(self) -> tuple[int, tuple[Route, ...]]:
        """Version and pipelines that take new requests."""
        raise NotImplementedError

    def heads(self) -> tuple[Head, ...]:
        """Every living formation's head, for the ledger."""
        raise NotImplementedError

    def pipeline_of(self, formation_id: str) -> str:
        """The pipeline a formation serves; '' when it is not known."""
        raise NotImplementedError

    def nodes_view(self) -> tuple[NodeView, ...]:
        """For the status."""
        raise NotImplementedError

    def pipelines_view(self) -> tuple[PipelineView, ...]:
        """For the status."""
        raise NotImplementedError
