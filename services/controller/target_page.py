"""The page that Prometheus finds engines by; a controller that does not lead has none to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.targets import NOBODY, targets
from services.controller.core.cluster.views import NodeView

PATH = "/targets"


class TargetPage:
    """Written by the loop that leads, read by the threads that Prometheus is answered in."""

    def __init__(self) -> None:
        self._body = NOBODY

    def show(self, nodes: Iterable[NodeView], offer_of: Callable[[str], Offer | None]) -> None:
        """The nodes as they are now."""
        self._body = targets(nodes, offer_of)

    def read(self) -> bytes:
        """As it was shown last."""
        return self._body
