"""What a router is asked for is counted from its start on, by model."""

from __future__ import annotations

from services.common.demand import Demand
from services.router.core.demand import MAX_MODELS, DemandCounter


def test_a_request_counts_once_for_each_choice() -> None:
    counter = DemandCounter()
    counter.asked("m", 10, 1)
    counter.asked("m", 20, 3)
    counter.answered("m", 90, 3)
    assert counter.counts() == {"m": Demand(4, 70, 3, 90, 0)}


def test_who_waits_or_is_answered_is_open() -> None:
    counter = DemandCounter()
    counter.opened("m")
    with counter.waiting("m"):
        assert counter.counts()["m"].open == 2
    counter.closed("m")
    assert counter.counts() == {"m": Demand()}


def test_no_more_models_are_counted_than_the_limit() -> None:
    counter = DemandCounter()
    for index in range(2 * MAX_MODELS):
        counter.asked(f"m{index}", 1, 1)
        counter.opened(f"m{index}")
        counter.closed(f"m{index}")
    counter.asked("m0", 1, 1)
    assert len(counter.counts()) == MAX_MODELS
    assert counter.counts()["m0"].requests == 2
