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
    copying: bool = False
    """Blocks of what it runs go ahead to who goes on with it; the formation serves on."""
    copied: bool = False
    """They have, as far as they did."""

    @property
    def drains(self) -> bool:
        return self.state is HandoverState.DRAINING

    def copy(self) -> None:
        """Blocks begin to go ahead."""
        self._must_be(HandoverState.PREPARING, "have blocks go ahead")
        self.copying = True

    def end_copy(self) -> None:
        """They are over, or are not waited for."""
        self.copying, self.copied = False, True

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
