"""Whether placement is being asked for a plan, and how it answered last."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.nodes import NodeFacts
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.settings import ClusterSettings


@dataclass(slots=True)
class PlanAsking:
    """One question at a time."""

    plans: Backoff = field(default_factory=Backoff)
    """Attempts at a plan."""
    _waits: bool = False
    _asked: tuple[NodeFacts, ...] = ()
    """Of which nodes a plan was asked for last."""

    def may_ask(self, nodes: tuple[NodeFacts, ...], now_s: float) -> bool:
        """Nobody is being asked, and another answer may come."""
        if self._waits or now_s < self.plans.retry_at_s:
            return False
        return not (self.plans.permanent and nodes == self._asked)

    def ask(self, nodes: tuple[NodeFacts, ...]) -> None:
        """Placement is asked."""
        self.plans.hope()
        self._waits, self._asked = True, nodes

    def answered(self) -> None:
        """It has a plan."""
        self._waits = False
        self.plans.succeed()

    def failed(self, settings: ClusterSettings, reason: str, permanent: bool, now_s: float) -> None:
        """It did not answer, or has no plan for these nodes."""
        self._waits = False
        self.plans.fail(
            now_s,
            reason,
            first_s=settings.retry_s,
            longest_s=settings.retry_max_s,
            permanent=permanent,
        )
