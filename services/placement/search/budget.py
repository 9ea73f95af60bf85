"""How long a search may go on."""

from __future__ import annotations

import math
from typing import Protocol

from services.common.errors import DeadlineExceeded


class SearchBudget(Protocol):
    """Time left for a search; the edge owns the clock and the caller's cancellation."""

    def expired(self) -> bool: ...

    def remaining_s(self) -> float:
        """Infinite where there is no clock."""
        ...


class Unlimited:
    """No clock: what is found depends on nothing but the question. For simulations and tests."""

    def expired(self) -> bool:
        return False

    def remaining_s(self) -> float:
        return math.inf


UNLIMITED = Unlimited()


class Part:
    """A share of what another budget has left, so that one search does not take it all."""

    def __init__(self, whole: SearchBudget, share: float) -> None:
        self._whole = whole
        left_s = whole.remaining_s()
        self._kept_s = left_s * (1 - share) if math.isfinite(left_s) else 0.0

    def expired(self) -> bool:
        return self._whole.expired() or self.remaining_s() <= 0

    def remaining_s(self) -> float:
        return max(0.0, self._whole.remaining_s() - self._kept_s)


def solver_s(budget: SearchBudget, most_s: float) -> float:
    """Seconds for one solve: `most_s` of what is left. Without a clock it has none either, and ends
    by its limits of work, so that a busy machine finds what an idle one does."""
    left_s = budget.remaining_s()
    return min(most_s, left_s) if math.isfinite(left_s) else math.inf


def check_time(budget: SearchBudget) -> None:
    """Raises DeadlineExceeded when the budget is over: for what comes before there is a plan."""
    if budget.expired():
        raise out_of_time()


def out_of_time() -> DeadlineExceeded:
    """What a search says that has nothing to show when its budget is over."""
    return DeadlineExceeded("time ran out before a plan was found")
