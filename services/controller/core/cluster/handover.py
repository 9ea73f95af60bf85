"""The way from a formation to what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.controller.core.cluster.transitions import need_state


class HandoverState(StrEnum):
    """A hand-over's life."""

    PREPARING = "preparing"
    """What follows is found, started, loaded; the formation serves on."""
    READY = "ready"
    """What follows could begin."""
    DRAINING = "draining"
    """The formation takes nothing new and seals what it has."""
    OVER = "over"


@dataclass(slots=True)
class Handover:
    """Of one formation. Only its own methods change it."""

    formation_id: str
    sampled: int = 0
    """Tokens its head had sampled when it began, as far as beats had told."""
    state: HandoverState = HandoverState.PREPARING

    @property
    def drains(self) -> bool:
        return self.state is HandoverState.DRAINING

    def ready(self) -> None:
        """What follows could begin."""
        self._must_be(HandoverState.PREPARING, "get ready")
        self.state = HandoverState.READY

    def drain(self) -> None:
        """The formation is sealed: what follows is ready, or there is no time to wait for it."""
        self._must_be((HandoverState.PREPARING, HandoverState.READY), "drain")
        self.state = HandoverState.DRAINING

    def end(self) -> None:
        """The formation is no more, sealed or not."""
        self._must_be(tuple(HandoverState)[:3], "end")
        self.state = HandoverState.OVER

    def _must_be(self, allowed: HandoverState | tuple[HandoverState, ...], what: str) -> None:
        states = (allowed,) if isinstance(allowed, HandoverState) else allowed
        need_state(self.state, states, f"the hand-over of {self.formation_id} cannot {what}")
