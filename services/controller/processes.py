"""Whose each engine process is: what a caller that speaks for one node is held to."""

from __future__ import annotations

from services.common.errors import PermissionDenied, Unavailable

LIMIT = 16_384


class Processes:
    """Incarnations by who registered them; the one not heard of for longest is forgotten first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._nodes: dict[str, str] = {}

    def registered(self, node_id: str, incarnation: str) -> None:
        """Raises PermissionDenied for the process of another node: its checkpoints and its place
        in formations go by the incarnation."""
        if self._nodes.get(incarnation, node_id) != node_id:
            raise PermissionDenied("the process is another node's", field="incarnation")
        self._nodes.pop(incarnation, None)
        self._nodes[incarnation] = node_id
        if len(self._nodes) > self._limit:
            del self._nodes[next(iter(self._nodes))]

    def check(self, node_id: str, incarnation: str) -> None:
        """Raises PermissionDenied for the process of another node, and Unavailable while it is
        not known whose it is, as after a restart of the controller."""
        known = self._nodes.get(incarnation)
        if known is None:
            raise Unavailable("the process has not registered yet", field="incarnation")
        if known != node_id:
            raise PermissionDenied(
                f"the caller speaks for node {node_id} alone", field="incarnation"
            )
