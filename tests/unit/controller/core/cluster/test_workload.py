"""What routers count becomes means of the recent past, whatever is lost, late or told twice."""

from __future__ import annotations

import math
from random import Random

import pytest

from services.common.demand import Demand
from services.controller.core.cluster.workload import (
    MAX_MODELS,
    Workload,
    Workloads,
    WorkloadSettings,
)

SETTINGS = WorkloadSettings(smooth_s=60.0, router_gone_s=15.0)


def told(workloads: Workloads, at_s: float, demand: Demand, router: str = "r0", run: str = "a"):
    workloads.reported(router, run, at_s, {"m": demand}, at_s)


def demand(requests: int, *, prompt: int = 100, answer: int = 20, open_: int = 0) -> Demand:
    return Demand(requests, requests * prompt, requests, requests * answer, open_)


@pytest.fixture
def workloads() -> Workloads:
    return Workloads(SETTINGS, 0.0)


def test_a_steady_rate_is_told_from_the_first_seconds_on(workloads):
    assert workloads.of("m", 0.0) is None
    for second in range(0, 301, 2):
        told(workloads, float(second), demand(3 * second))
        found = workloads.of("m", float(second))
        if second:
            assert found.arrival_rate_rps == pytest.approx(3.0)
            assert (found.input_tokens, found.output_tokens) == pytest.approx((100.0, 20.0))
    assert found.window_s == pytest.approx(60.0, rel=0.1)


def test_what_was_counted_before_the_first_report_is_of_no_known_time(workloads):
    told(workloads, 1000.0, demand(10_000))
    assert workloads.of("m", 1000.0) is None
    told(workloads, 1010.0, demand(10_010))
    assert workloads.of("m", 1010.0).arrival_rate_rps == pytest.approx(1.0)


def test_a_report_twice_or_late_changes_nothing(workloads):
    told(workloads, 0.0, demand(0))
    told(workloads, 10.0, demand(10))
    before = workloads.of("m", 10.0)
    told(workloads, 10.0, demand(10))
    told(workloads, 5.0, demand(5))
    assert workloads.of("m", 10.0) == before


def test_a_report_that_is_lost_is_made_up_for_by_the_next(workloads):
    for second in (0, 2, 16):
        told(workloads, float(second), demand(second))
    assert workloads.of("m", 16.0).arrival_rate_rps == pytest.approx(1.0)


def test_several_routers_add_up_and_one_that_is_gone_is_forgotten(workloads):
    for second in range(0, 21, 2):
        told(workloads, float(second), demand(second), "r0")
        told(workloads, float(second), demand(2 * second, prompt=400), "r1")
    found = workloads.of("m", 20.0)
    assert found.arrival_rate_rps == pytest.approx(3.0)
    assert found.input_tokens == pytest.approx(300.0)
    for second in range(22, 40, 2):
        told(workloads, float(second), demand(second), "r0")
    assert workloads.of("m", 38.0).arrival_rate_rps == pytest.approx(1.0)


def test_a_router_that_starts_anew_counts_from_zero(workloads):
    for second in range(0, 21, 2):
        told(workloads, float(second), demand(second))
    workloads.reported("r0", "b", 0.0, {"m": demand(0)}, 21.0)
    workloads.reported("r0", "b", 10.0, {"m": demand(10)}, 31.0)
    assert workloads.of("m", 31.0).arrival_rate_rps == pytest.approx(1.0)


def test_a_rate_that_ends_fades_and_the_lengths_stay(workloads):
    for second in range(0, 61, 2):
        told(workloads, float(second), demand(second))
    rates = []
    for second in range(62, 400, 2):
        told(workloads, float(second), demand(60))
        rates.append(workloads.of("m", float(second)).arrival_rate_rps)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01
    assert workloads.of("m", 398.0).input_tokens == pytest.approx(100.0)


def test_a_router_that_nobody_asks_tells_of_a_rate_of_zero(workloads):
    workloads.reported("r0", "a", 0.0, {}, 0.0)
    workloads.reported("r0", "a", 30.0, {}, 10.0)
    assert workloads.of("m", 10.0) == Workload(0.0, 0.0, 0.0, 30.0)


def test_who_waits_or_is_answered_is_told(workloads):
    told(workloads, 0.0, demand(0, open_=2))
    told(workloads, 0.0, demand(0, open_=1), "r1")
    assert workloads.open("m", 1.0) == 3
    assert workloads.asked_s("m") == 0.0
    told(workloads, 10.0, demand(0), "r1")
    assert workloads.open("m", 16.0) == 0, "the other router is gone"
    assert workloads.open("other", 16.0) == 0


def test_when_it_was_last_asked_for(workloads):
    assert workloads.asked_s("m") == 0.0
    told(workloads, 5.0, demand(0))
    told(workloads, 7.0, demand(1))
    told(workloads, 9.0, demand(1))
    assert workloads.asked_s("m") == 7.0


def test_no_router_has_more_models_than_the_limit(workloads):
    for batch in range(4):
        names = {f"m{batch}-{i}": demand(1) for i in range(MAX_MODELS)}
        workloads.reported("r0", "a", float(batch), names, float(batch))
    assert len(list(workloads.models())) == MAX_MODELS


def test_what_is_within_the_envelope_or_within_chance_is_the_same():
    planned = Workload(2.0, 700.0, 200.0)
    assert Workload(2.4, 700.0, 200.0).within(planned, 0.25)
    assert not Workload(3.0, 700.0, 200.0).within(planned, 0.25)
    assert not Workload(2.0, 700.0, 400.0).within(planned, 0.25)
    assert Workload(9.0, 700.0, 200.0).within(planned, 0.25, arrivals=False)
    assert Workload(2.0, 0.0, 0.0).within(planned, 0.25), "lengths that nobody knows"
    assert Workload(2.0, 700.0, 400.0, 1.0).within(planned, 0.25), "two requests say little"
    assert not Workload(0.0, 700.0, 200.0, 60.0).within(planned, 0.25), "120 did not come"


def test_arrivals_by_chance_stay_within_the_envelope_almost_always():
    random, workloads, outside = Random(3), Workloads(SETTINGS, 0.0), 0
    planned, count = Workload(0.2, 100.0, 20.0), 0
    for second in range(0, 20_000, 2):
        count += sum(random.random() < 0.002 for _ in range(200))
        told(workloads, float(second), demand(count))
        found = workloads.of("m", float(second))
        if found is not None and second > 120:
            outside += not found.within(planned, 0.25)
    assert outside / 10_000 < 0.15
    assert math.isfinite(found.window_s)
