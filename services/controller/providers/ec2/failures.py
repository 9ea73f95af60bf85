"""What EC2 refuses, and whose matter that is."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from services.common.errors import ECHO_LIMIT_CHARS, ShuntError

_CAPACITY = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientCapacityOnOutpost",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
    }
)
_THROTTLED = frozenset(
    {
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
    }
)
_PASSING = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "RequestExpired",
        "ServiceUnavailable",
        "Unavailable",
    }
)
_LEAST_SERVER_ERROR = 500


class Matter(StrEnum):
    """What is to be done about a refusal."""

    CAPACITY = "capacity"
    """The pool has none: another offer, and this one later."""
    OPERATOR = "operator"
    """Quota, rights, image, template: it stays so until somebody sees to it."""
    THROTTLED = "throttled"
    """Asked too often: nothing was done, the same later."""
    PASSING = "passing"
    """A fault on the way or at EC2: what was asked may have been done."""


class Refusal(ShuntError):
    """EC2 did not do what was asked."""

    def __init__(self, matter: Matter, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}"[:ECHO_LIMIT_CHARS], field="ec2")
        self.matter = matter
        self.code = code
        self.in_doubt = matter is Matter.PASSING
        """What was asked may have been done, at this attempt or at one before it."""


def matter_of(code: str, status: int = 0) -> Matter:
    """By error code and HTTP status; what is not known is an operator's matter, unless EC2 itself
    says that it failed."""
    for codes, matter in (
        (_CAPACITY, Matter.CAPACITY),
        (_THROTTLED, Matter.THROTTLED),
        (_PASSING, Matter.PASSING),
    ):
        if code in codes:
            return matter
    return Matter.PASSING if status >= _LEAST_SERVER_ERROR else Matter.OPERATOR


def worst(errors: Sequence[tuple[str, str]]) -> Refusal:
    """Of a fleet that started nothing, by codes and messages: what somebody has to see to first."""
    order = (Matter.OPERATOR, Matter.PASSING, Matter.THROTTLED, Matter.CAPACITY)
    refusals = [Refusal(matter_of(code), code, message) for code, message in errors]
    if not refusals:
        return Refusal(Matter.CAPACITY, "NoInstance", "nothing was started, and nobody says why")
    return min(refusals, key=lambda refusal: order.index(refusal.matter))
