"""Pauses between attempts at something that fails, and what it fails of."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_DOUBLINGS = 40


@dataclass(slots=True)
class Backoff:
    """The pause doubles from failure to failure."""

    failures: int = 0
    """In a row."""
    retry_at_s: float = 0.0
    since_s: float = 0.0
    """Of the first of them."""
    cause: str = ""
    """Of the last one."""
    node_id: str = ""
    """Where that was; empty when it was at no node."""
    permanent: bool = False
    """Another attempt is of no use while all else stays as it is."""

    def fail(
        self,
        now_s: float,
        cause: str,
        *,
        first_s: float,
        longest_s: float,
        free: bool = False,
        node_id: str = "",
        permanent: bool = False,
    ) -> None:
        """Pauses for `first_s` to `longest_s`; not at all behind the first failure in a row, if
        that one is free. Failures within one pause count as one."""
        self.cause, self.node_id = cause, node_id
        self.permanent = self.permanent or permanent
        if self.failures and now_s < self.retry_at_s:
            return
        if not self.failures:
            self.since_s = now_s
        pause_s = min(first_s * 2 ** min(self.failures, _MOST_DOUBLINGS), longest_s)
        if free and not self.failures:
            pause_s = 0.0
        self.failures += 1
        self.retry_at_s = now_s + pause_s

    def succeed(self) -> None:
        """It failed no more."""
        self.failures, self.retry_at_s, self.cause, self.node_id = 0, 0.0, "", ""
        self.permanent = False

    def hope(self) -> None:
        """Something else has changed: another attempt may be of use."""
        self.permanent = False

    def try_now(self) -> None:
        """What it failed of is over: the next attempt waits no longer, and counts on."""
        self.retry_at_s = 0.0
