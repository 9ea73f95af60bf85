"""A share of a link: when the next bytes may go, so that no more go than are allowed."""

from __future__ import annotations


class Rate:
    """Bytes a second, over all that send; those that come first go first."""

    def __init__(self, bytes_per_s: float) -> None:
        """0: as many as there may be."""
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        """When what was let go so far has gone."""

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """How long these wait; they count as sent."""
        if not self._bytes_per_s:
            return 0.0
        begins_s = max(now_s, self._free_s)
        self._free_s = begins_s + size_bytes / self._bytes_per_s
        return begins_s - now_s
