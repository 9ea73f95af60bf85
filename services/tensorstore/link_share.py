"""A share of the network link, handed out in order: a token bucket without a clock of its own."""

from __future__ import annotations


class LinkShare:
    """Spaces sends so that, over any time, at most burst + rate x time bytes go out."""

    def __init__(self, bytes_per_s: float, burst_bytes: int = 4 << 20) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_bytes / bytes_per_s
        self._free_at_s = float("-inf")

    def reserve(self, now_s: float, size_bytes: int) -> float:
        """Seconds to wait before these bytes may be sent."""
        start_s = max(self._free_at_s, now_s - self._burst_s)
        self._free_at_s = start_s + size_bytes / self._bytes_per_s
        return max(0.0, self._free_at_s - now_s)
