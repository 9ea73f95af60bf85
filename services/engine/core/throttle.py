"""Makes a stage as slow as it is declared to be: it rests behind steps that were computed faster.

The device that is played is busy for what was computed, divided by its share of a core. It is
behind where that is not over yet; what it owes is rested behind later steps, or passes while there
is nothing to do.
"""

from __future__ import annotations

LONGEST_REST_S = 0.5
"""Behind one step: no step is so late that its stage seems stuck."""
LONGEST_CREDIT_S = 0.02
"""What a step was late, for cores are shared and a timer is not exact, is made good by the next:
so much of it at most."""


class Throttle:
    """Lets the steps of one formation be computed for a share of the time only."""

    def __init__(self, share: float) -> None:
        """`share` lies in (0, 1]; at 1 there is no rest."""
        self.share = share
        self._free_s = float("-inf")
        """When the device that is played is free again."""
        self._late_s = 0.0

    def rest_s(self, began_s: float, computed_s: float, now_s: float) -> float:
        """How long to rest behind a step that began then and took so much of a core."""
        if self.share == 1:
            return 0.0
        began_s = max(began_s - self._late_s, self._free_s)
        self._free_s = began_s + computed_s / self.share
        return min(max(0.0, self._free_s - now_s), LONGEST_REST_S)

    def done(self, now_s: float) -> None:
        """The step is over, with its rest."""
        self._late_s = min(max(0.0, now_s - self._free_s), LONGEST_CREDIT_S)
