"""The seam to whoever starts and ends nodes: local processes, containers, a cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from services.common.errors import FailedPrecondition
from services.common.nodes import NodeShape


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node has ended, for whatever reason."""

    node_id: str
    reason: str


class Provider(Protocol):
    """Launches, watches and ends nodes.

    A handle is whatever finds a node again after the controller restarted; it is journaled.
    """

    async def launch(self, node_id: str, shape: NodeShape) -> str:
        """Starts a node, its id new for every launch, and watches it; returns its handle, empty
        when nodes come by themselves.

        Raises Unavailable when there is no capacity.
        """
        ...

    async def adopt(self, node_id: str, handle: str) -> bool:
        """Watches a node launched before a restart; False when it no longer lives."""
        ...

    async def recognise(self, node_id: str, pid: int) -> str:
        """The handle of a process that registered as a node; empty when it is not one of ours.

        It finds nodes whose launch took effect although its handle was never journaled. Raises
        PermissionDenied when the node is another process.
        """
        ...

    def holds(self, node_id: str) -> bool:
        """Whether `terminate` can end the node."""
        ...

    async def terminate(self, node_id: str, grace_s: float) -> None:
        """Ends a node: asked to stop, then killed after `grace_s`; at once when that is zero.

        An unknown node is none of ours: raises FailedPrecondition.
        """
        ...

    def events(self) -> AsyncIterator[NodeGone]:
        """Nodes that ended, as soon as it is known; one consumer."""
        ...

    async def close(self) -> None:
        """Stops watching; the nodes live on."""
        ...


class ExternalProvider:
    """Nodes come and go by themselves, such as containers: a launch only waits for one to come."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()

    async def launch(self, node_id: str, shape: NodeShape) -> str:
        return ""

    async def adopt(self, node_id: str, handle: str) -> bool:
        return True

    async def recognise(self, node_id: str, pid: int) -> str:
        return ""

    def holds(self, node_id: str) -> bool:
        return False

    async def terminate(self, node_id: str, grace_s: float) -> None:
        raise FailedPrecondition("nodes of an external provider cannot be ended", field="node_id")

    async def events(self) -> AsyncIterator[NodeGone]:
        await self._closed.wait()
        return
        yield

    async def close(self) -> None:
        self._closed.set()
