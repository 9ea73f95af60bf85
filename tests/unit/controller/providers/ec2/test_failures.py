from __future__ import annotations

import pytest

from services.controller.providers.ec2.failures import Matter, Refusal, matter_of, worst


@pytest.mark.parametrize(
    ("code", "status", "matter"),
    [
        ("InsufficientInstanceCapacity", 500, Matter.CAPACITY),
        ("UnfulfillableCapacity", 400, Matter.CAPACITY),
        ("SpotMaxPriceTooLow", 400, Matter.CAPACITY),
        ("ReservationCapacityExceeded", 400, Matter.CAPACITY),
        ("RequestLimitExceeded", 503, Matter.THROTTLED),
        ("Throttling", 400, Matter.THROTTLED),
        ("InternalError", 500, Matter.PASSING),
        ("SomethingNew", 502, Matter.PASSING),
        ("SomethingNew", 400, Matter.OPERATOR),
        ("VcpuLimitExceeded", 400, Matter.OPERATOR),
        ("MaxSpotInstanceCountExceeded", 400, Matter.OPERATOR),
        ("UnauthorizedOperation", 403, Matter.OPERATOR),
        ("InvalidAMIID.NotFound", 400, Matter.OPERATOR),
        ("InvalidLaunchTemplateName.NotFoundException", 400, Matter.OPERATOR),
        ("IdempotentParameterMismatch", 400, Matter.OPERATOR),
    ],
)
def test_a_refusal_is_somebodys_matter(code: str, status: int, matter: Matter) -> None:
    assert matter_of(code, status) is matter


def test_of_several_errors_an_operators_matter_is_told_first() -> None:
    capacity, quota = ("InsufficientInstanceCapacity", "none"), ("VcpuLimitExceeded", "8 of 8")
    assert worst([capacity, capacity]).matter is Matter.CAPACITY
    assert worst([capacity, quota, capacity]).message == "VcpuLimitExceeded: 8 of 8"
    assert worst([]).matter is Matter.CAPACITY


def test_only_what_failed_in_passing_may_have_been_done() -> None:
    assert Refusal(Matter.PASSING, "InternalError", "").in_doubt
    assert not Refusal(Matter.THROTTLED, "Throttling", "").in_doubt
