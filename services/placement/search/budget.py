"""How long a search may go on."""

from __future__ import annotations

from typing import Protocol

from services.common.errors import DeadlineExceeded


class SearchBudget(Protocol):
    """Time left for a search; the edge owns the clock and the caller's cancellation."""

    def expired(self) -> bool: ...

    def remaining_s(self) -> float: ...


class Unlimited:
    """No limit: for small searches and tests."""

    def expired(self) -> bool:
        return False

    def remaining_s(self) -> float:
        return 3600.0


UNLIMITED = Unlimited()


class Part:
    """A share of what another budget has left, so that one search does not take it all."""

    def __init__(self, whole: SearchBudget, share: float) -> None:
        self._whole = whole
        self._kept_s = whole.remaining_s() * (1 - share)

    def expired(self) -> bool:
        return self._whole.expired() or self.remaining_s() <= 0

    def remaining_s(self) -> float:
        return max(0.0, self._whole.remaining_s() - self._kept_s)


def check_time(budget: SearchBudget) -> None:
    """Raises DeadlineExceeded when the budget is over: for what comes before there is a plan."""
    if budget.expired():
        raise out_of_time()


def out_of_time() -> DeadlineExceeded:
    """What a search says that has nothing to show when its budget is over."""
    return DeadlineExceeded("time ran out before a plan was found")
