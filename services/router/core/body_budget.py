"""The bytes that all request bodies together may hold."""

from __future__ import annotations


class BodyBudget:
    """Counts what is read and not yet made into a generation."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Whether there is room; takes it if so."""
        if self.held_bytes + size_bytes > self._limit_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Room for others."""
        self.held_bytes -= size_bytes
