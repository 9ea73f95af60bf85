"""Notices: what a node's surroundings say about how long it will be there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NoticeKind(StrEnum):
    """Who gave a notice, and what for."""

    SPOT = "spot"
    """The market takes its node back."""
    REBALANCE = "rebalance"
    """It says that it is likely to: advice, with no deadline."""
    SHUTDOWN = "shutdown"
    """The host goes down."""
    OPERATOR = "operator"
    """Somebody asked for it."""

    @property
    def is_advice(self) -> bool:
        """Nothing has to happen by a time."""
        return self is NoticeKind.REBALANCE


@dataclass(frozen=True, slots=True)
class Notice:
    """What is said of one node, or of one process."""

    kind: NoticeKind
    deadline_s: float | None
    """When it is gone, on the clock of whoever is told; None for advice."""
