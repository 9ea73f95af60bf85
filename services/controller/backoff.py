"""Pauses between attempts at something that fails."""

from __future__ import annotations

from dataclasses import dataclass

from services.controller.cluster_settings import ClusterSettings

_MOST_DOUBLINGS = 20


@dataclass(slots=True)
class Backoff:
    """The pause doubles from failure to failure, from `retry_s` up to `retry_max_s`."""

    failures: int = 0
    """In a row."""
    retry_at_s: float = 0.0

    def fail(self, settings: ClusterSettings, now_s: float) -> None:
        """Failures within one pause count as one."""
        if now_s < self.retry_at_s:
            return
        pause_s = settings.retry_s * 2 ** min(self.failures, _MOST_DOUBLINGS)
        self.failures += 1
        self.retry_at_s = now_s + min(pause_s, settings.retry_max_s)

    def succeed(self) -> None:
        self.failures, self.retry_at_s = 0, 0.0
