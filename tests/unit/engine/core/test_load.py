from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from services.common.exchange import ENDS, TenantLoad
from services.common.generation import PriorityClass
from services.engine.core.load import MOST_TENANTS, OTHERS, LoadGauge, ends
from services.engine.core.scheduler import SchedulerSettings
from tests.driven_scheduler import Driver, key, request


def test_before_anything_ran_the_gauge_tells_room_and_no_times() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 32, 1)
    load = LoadGauge().read(driver.scheduler)
    assert (load.places, load.running, load.step_rows, load.tenants) == (4, 0, 64, ())
    assert load.free_positions == 512
    assert (load.step_s, load.row_s, load.answer_tokens) == (0.0, 0.0, 0.0)


def test_the_gauge_tells_what_runs_and_waits_by_tenant_and_lane() -> None:
    driver = Driver(SchedulerSettings(16, 2, 8, 1000), 64, 1)
    driver.start("a1", 40, 5, tenant="a", weight=3)
    driver.start("a2", 10, 5, tenant="a", weight=3)
    driver.start("b1", 20, 5, tenant="b", priority=PriorityClass.TOLERANT)
    driver.start("c1", 20, 5, tenant="c")
    driver.depart()
    driver.scheduler.set_unread(key("c1"), True)
    load = LoadGauge().read(driver.scheduler)
    assert load.running == 2
    assert load.free_positions < 64 * 16
    assert set(load.tenants) == {
        TenantLoad("a", 0, 3, 1, 1, 40 + 10),
        TenantLoad("b", 1, 1, 0, 1, 20),
        TenantLoad("c", 2, 1, 1, 0, 20 - 16),
    }


def test_times_and_lengths_follow_what_steps_and_answers_took() -> None:
    driver, gauge, now_s = Driver(SchedulerSettings(64, 8, 8, 1000), 64, 1), LoadGauge(), 0.0
    driver.took_s = lambda rows: 0.010 + 0.001 * rows
    for index in range(6):
        driver.start(str(index), 10 * (index + 1), 10 + index)
    while (step := driver.depart()) is not None:
        gauge.departed(step, now_s)
        took_s = driver.took_s(step.batch.rows)
        now_s += took_s + 0.004
        driver.arrive()
        gauge.came_back(step.number, took_s, now_s)
    load = gauge.read(driver.scheduler)
    assert load.step_s == pytest.approx(0.010, rel=0.1)
    assert load.row_s == pytest.approx(0.001, rel=0.1)
    assert 0.002 < load.lag_s <= 0.004 + 1e-9
    for tokens in (10, 20, 30):
        gauge.answered(tokens, at_limit=True)
    assert 10 < gauge.read(driver.scheduler).answer_tokens < 20


def test_until_an_answer_has_ended_those_that_run_are_taken_at_their_word() -> None:
    driver = Driver(SchedulerSettings(64, 8, 8, 1000), 64, 1)
    driver.start("a", 10, 30)
    driver.start("b", 10, 50)
    driver.depart()
    assert LoadGauge().read(driver.scheduler).answer_tokens == 40


def test_answers_that_end_at_their_limit_end_when_that_is_there() -> None:
    assert ends([], 0.0) == ()
    quarters = [limit for limit in (10, 20, 30, 40) for _ in range(ENDS // 4)]
    assert ends([30, 10, 20, 40], 0.0) == (10, *quarters)
    assert ends([64] * 64, 0.0) == (64,) * (1 + ENDS)
    assert ends([1, *[50] * 63], 0.0) == (1, *[50] * ENDS), "one is no part of a burst"
    assert ends([0, 7], 0.0)[:2] == (0, 0), "one is at its end"


def test_answers_that_may_end_at_any_token_end_one_after_another() -> None:
    first, *parts = ends([100_000] * 64, 1 / 50)
    assert first <= 1
    half = parts[ENDS // 2 - 1]
    assert half == pytest.approx(50 * log(2), rel=0.1), "half of them, as of all that decays"
    assert parts == sorted(parts)
    assert ends([100_000] * 64, 1.0) == (1,) * (1 + ENDS)
    assert ends([10] * 64, 1 / 50)[-1] == 10, "but none goes on behind its limit"


def test_the_gauge_tells_when_those_that_run_end() -> None:
    driver, gauge = Driver(SchedulerSettings(64, 8, 8, 1000), 64, 1), LoadGauge()
    assert gauge.read(driver.scheduler).ends == ()
    for index in range(4):
        driver.start(str(index), 5, 10 * (index + 1))
    for _ in range(3):
        driver.depart()
        driver.arrive()
    told = gauge.read(driver.scheduler).ends
    assert told == (7, *(limit for limit in (7, 17, 27, 37) for _ in range(ENDS // 4)))
    for _ in range(50):
        gauge.answered(4, at_limit=False)
    assert gauge.read(driver.scheduler).ends[-1] < 37


@pytest.mark.parametrize(("stages", "sequences", "steps"), [(1, 8, 1), (2, 8, 2), (2, 3, 1)])
def test_the_gauge_tells_in_how_many_steps_all_have_a_row_more(
    stages: int, sequences: int, steps: int
) -> None:
    driver = Driver(SchedulerSettings(64, 8, 4, 1000), 64, stages)
    for index in range(sequences):
        driver.start(str(index), 5, 40)
    for _ in range(8):
        driver.depart()
        driver.arrive()
    assert LoadGauge().read(driver.scheduler).round_steps == steps
    while driver.depart():
        pass
    assert len({k for step in driver.steps[-steps:] for k in step.keys}) == sequences


def test_what_others_have_computed_of_waiting_prompts_is_taken_off() -> None:
    driver, gauge = Driver(SchedulerSettings(64, 1, 8, 1000), 64, 1), LoadGauge()
    for index in range(40):
        driver.start(str(index), 33, 1)
    for number in range(30):
        step = driver.depart()
        assert step is not None
        gauge.departed(step, float(number))
        driver.arrive()
        gauge.came_back(step.number, 0.1, number + 0.1)
    (mine,) = gauge.read(driver.scheduler).tenants
    assert mine.rows < 0.2 * 33 * mine.queued


def test_of_many_tenants_those_that_have_least_are_told_as_one() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 64, 1)
    for index in range(MOST_TENANTS + 50):
        name = f"t{index}"
        for number in range(2 if index == 7 else 1):
            asked = replace(request(name, 10, 5), generation_id=f"{name}-{number}", tenant=name)
            driver.scheduler.start(key(f"{name}-{number}"), asked, ())
    tenants = {one.tenant: one for one in LoadGauge().read(driver.scheduler).tenants}
    assert len(tenants) == MOST_TENANTS + 1
    assert tenants["t7"].queued == 2
    assert tenants[OTHERS].queued == 50
    assert sum(one.queued for one in tenants.values()) == MOST_TENANTS + 51
