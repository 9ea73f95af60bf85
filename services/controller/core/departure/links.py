"""What the link gives to blocks on their two ways: ahead of their generations, where they rest
between rounds for the sake of what decodes, and behind a seal, where nothing rests.
"""

from __future__ import annotations

from services.common.link import Link


class Links:
    """Of one controller's mesh."""

    def __init__(self) -> None:
        self.ahead = Link()
        """Rests count."""
        self.behind = Link()

    def carried(self, size_bytes: int, moved_s: float, took_s: float, now_s: float) -> None:
        """So many bytes went ahead in rounds that took `moved_s` together, and `took_s` with all
        rests."""
        self.ahead.carried(size_bytes, took_s, now_s)
        self.behind.carried(size_bytes, moved_s, now_s)
