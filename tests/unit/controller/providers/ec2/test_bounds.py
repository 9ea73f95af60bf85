from __future__ import annotations

from math import inf, nan

import pytest

from services.common.errors import InvalidArgument, ResourceExhausted
from services.controller.providers.ec2.bounds import Bounds


def test_one_more_is_admitted_up_to_the_limit_and_not_beyond() -> None:
    bounds = Bounds(3, 0.3)
    bounds.admit([0.1, 0.1], 0.1)
    with pytest.raises(ResourceExhausted, match="max_instances is 3"):
        bounds.admit([0.0] * 3, 0.0)
    with pytest.raises(ResourceExhausted, match=r"max_dollars_per_hour is 0\.3"):
        bounds.admit([0.1, 0.1], 0.1001)


@pytest.mark.parametrize("price", [inf, nan])
def test_what_nobody_knows_the_price_of_is_too_dear(price: float) -> None:
    with pytest.raises(ResourceExhausted):
        Bounds(9, 100.0).admit([price], 1.0)
    with pytest.raises(ResourceExhausted):
        Bounds(9, 100.0).admit([], price)


@pytest.mark.parametrize(
    ("instances", "dollars", "field"),
    [(0, 1.0, "max_instances"), (1, 0.0, "max_dollars_per_hour"), (1, nan, "max_dollars_per_hour")],
)
def test_bounds_that_cannot_be_are_refused(instances: int, dollars: float, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Bounds(instances, dollars)
    assert caught.value.field == field
