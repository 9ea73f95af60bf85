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


def check_time(budget: SearchBudget) -> None:
    """Raises DeadlineExceeded when the budget is over: for what comes before there is a plan."""
    if budget.expired():
        raise out_of_time()


def out_of_time() -> DeadlineExceeded:
    """What a search says that has nothing to show when its budget is over."""
    return DeadlineExceeded("time ran out before a plan was found")
