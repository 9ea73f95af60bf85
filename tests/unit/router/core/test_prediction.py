from __future__ import annotations

import random
from dataclasses import replace
from math import exp, log
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.exchange import HeadLoad, TenantLoad
from services.engine.core.load import LoadGauge
from services.engine.core.scheduler import SchedulerSettings
from services.router.core.prediction import UNDERWAY_S, Comer, Predictor, predict
from tests.driven_scheduler import Driver, request

STEP_S, ROW_S = 0.010, 0.0005
IDLE = HeadLoad(8, 0, 4096, 64, STEP_S, ROW_S, 0.0, 20.0)


def comer(tenant: str = "", rows: int = 30, lane: int = 0, weight: int = 1) -> Comer:
    return Comer(tenant, weight, lane, 1, rows, rows)


def held(
    tenant: str, running: int, queued: int = 0, rows: int = 0, lane: int = 0, weight: int = 1
) -> TenantLoad:
    return TenantLoad(tenant, lane, weight, running, queued, rows)


def busy(*tenants: TenantLoad) -> HeadLoad:
    return replace(IDLE, running=sum(t.running for t in tenants), tenants=tenants)


def test_at_an_idle_head_it_is_the_time_of_the_steps_that_read_the_prompt() -> None:
    said = predict(IDLE, comer(rows=30))
    assert said.first_token_s == pytest.approx(STEP_S + ROW_S * 31)
    assert said.tokens_per_s == pytest.approx(1 / (STEP_S + ROW_S))
    long = predict(IDLE, comer(rows=130))
    assert long.first_token_s == pytest.approx(3 * (STEP_S + ROW_S) + 130 * ROW_S)


def test_before_any_step_nothing_is_expected_to_take_long() -> None:
    assert predict(replace(IDLE, step_s=0.0, row_s=0.0), comer()).first_token_s == 0


def test_who_waits_for_a_place_waits_for_answers_to_end() -> None:
    full = busy(held("", 8))
    queue = busy(held("", 8, queued=8, rows=240))
    decode_s = STEP_S + 8 * ROW_S
    first_s = predict(full, comer()).first_token_s
    assert first_s > 20 * decode_s / 8
    assert predict(queue, comer()).first_token_s > first_s + 20 * decode_s * 0.9


def test_another_tenants_flood_counts_only_as_far_as_weights_grant_it() -> None:
    flood = busy(held("flood", 8, queued=500, rows=15_000))
    own = predict(flood, comer("flood")).first_token_s
    other = predict(flood, comer("quiet")).first_token_s
    alone = predict(IDLE, comer("quiet")).first_token_s
    assert own > 50 * other
    assert other < 3 * alone
    heavy = predict(flood, comer("quiet", weight=4)).first_token_s
    assert heavy <= other


def test_tolerant_work_is_before_nobody_and_nobody_waits_for_it() -> None:
    batch = busy(held("b", 8, queued=100, rows=3000, lane=1))
    idle_s = predict(IDLE, comer()).first_token_s
    assert predict(batch, comer()).first_token_s < 2 * idle_s
    live = busy(held("a", 8, queued=20, rows=600))
    late_s = predict(live, comer("b", lane=1)).first_token_s
    assert late_s > predict(live, comer("b")).first_token_s


LOADS = st.builds(
    lambda tenants, answers: replace(busy(*tenants.values()), answer_tokens=answers),
    st.dictionaries(
        st.sampled_from("abc"),
        st.integers(0, 2**32),
        max_size=3,
    ).map(
        lambda seeds: {
            name: held(
                name,
                (chance := random.Random(seed)).randint(0, 2),
                queued := chance.randint(0, 40),
                30 * queued,
                chance.randint(0, 1),
                chance.randint(1, 4),
            )
            for name, seed in seeds.items()
        }
    ),
    st.floats(0, 500),
)


@settings(max_examples=200, deadline=None)
@given(LOADS, st.integers(1, 500), st.integers(0, 1))
def test_more_work_makes_nobody_sooner(load: HeadLoad, rows: int, lane: int) -> None:
    mine = comer("a", rows, lane)
    first_s = predict(load, mine).first_token_s
    assert first_s >= 0
    assert predict(load, comer("a", rows + 50, lane)).first_token_s >= first_s
    tenants = {(one.tenant, one.lane): one for one in load.tenants}
    for tenant in "abc":
        one = tenants.get((tenant, 0), held(tenant, 0))
        more = {**tenants, (tenant, 0): replace(one, queued=one.queued + 5, rows=one.rows + 150)}
        later = predict(replace(load, tenants=tuple(more.values())), mine).first_token_s
        assert later >= 0.95 * first_s, "what each takes is a mean, and may fall a little"


def measured(seed: int, count: int) -> list[float]:
    """Ratios of what a scheduler took, in made-up time, to what was predicted."""
    chance = random.Random(seed)
    settings = SchedulerSettings(64, 8, 8, 1000, hurried_rows=64, share_prefixes=False)
    driver = Driver(settings, 400, 1)
    driver.took_s = lambda rows: STEP_S + ROW_S * rows
    gauge, predictor, now_s = LoadGauge(), Predictor(), 0.0
    asked: dict[str, tuple[float, float]] = {}
    ratios: list[float] = []
    arrivals = sorted(chance.uniform(0, 30) for _ in range(count))
    number = 0
    while number < len(arrivals) or driver.scheduler.has_work:
        while number < len(arrivals) and arrivals[number] <= now_s:
            tenant = chance.choice("aab")
            prompt, count = chance.randint(5, 100), chance.randint(5, 60)
            name = f"{tenant}{number}"
            predictor.told("f", gauge.read(driver.scheduler), now_s)
            said = predictor.predict("f", Comer.of(request(name, prompt, count, tenant)))
            assert said is not None
            asked[name] = arrivals[number], said.first_token_s
            driver.start(name, prompt, count, tenant=tenant)
            number += 1
        step = driver.depart()
        if step is None:
            now_s = max(now_s + 0.001, arrivals[number] if number < len(arrivals) else now_s)
            continue
        gauge.departed(step, now_s)
        before = set(driver.stopped)
        took_s = driver.took_s(step.batch.rows)
        now_s += took_s
        driver.arrive()
        gauge.came_back(step.number, took_s, now_s)
        for name in driver.stopped - before:
            gauge.answered(len(driver.outputs[name]), at_limit=True)
        for name in [n for n in asked if driver.outputs[n]]:
            asked_s, said_s = asked.pop(name)
            if number > 20 and said_s > 0:
                ratios.append((now_s - asked_s) / said_s)
                predictor.measured("f", said_s, now_s - asked_s)
    return ratios


@pytest.mark.parametrize(("count", "half", "most"), [(60, 1.2, 1.6), (150, 1.3, 2), (400, 2, 4)])
@pytest.mark.parametrize("seed", range(2))
def test_what_a_scheduler_takes_is_about_what_was_predicted(
    seed: int, count: int, half: float, most: float
) -> None:
    """Of few requests, of about as many as there are places for, and of far more than that."""
    errors = sorted(abs(log(ratio)) for ratio in measured(seed, count))
    print(f"median {exp(median(errors)):.2f}, p90 {exp(errors[len(errors) * 9 // 10]):.2f}")
    assert median(errors) <= log(half)
    assert errors[len(errors) * 9 // 10] <= log(most)


def test_who_comes_behind_a_burst_waits_until_the_burst_ends() -> None:
    """They began together and end together: no place becomes free before that."""
    driver, gauge, now_s = Driver(SchedulerSettings(64, 8, 8, 1000), 400, 1), LoadGauge(), 0.0
    driver.took_s = lambda rows: STEP_S + ROW_S * rows

    def step() -> None:
        nonlocal now_s
        made = driver.depart()
        assert made is not None
        gauge.departed(made, now_s)
        took_s = driver.took_s(made.batch.rows)
        now_s += took_s
        driver.arrive()
        gauge.came_back(made.number, took_s, now_s)

    for index in range(8):
        driver.start(f"burst{index}", 20 + index, 60)
    for _ in range(15):
        step()
    said = predict(gauge.read(driver.scheduler), Comer.of(request("late", 30, 60)))
    asked_s = now_s
    driver.start("late", 30, 60)
    while not driver.outputs["late"]:
        step()
    assert said.first_token_s == pytest.approx(now_s - asked_s, rel=0.15)


def test_behind_a_full_batch_the_next_one_ends_in_the_same_order() -> None:
    ends = (5, 10, 20, 30, 40, 50, 60, 70, 80)
    full = replace(busy(held("", 8)), ends=ends, answer_tokens=80.0)
    decode_s = STEP_S + 8 * ROW_S
    first_s = [
        predict(replace(full, tenants=(held("", 8, queued=before),)), comer(rows=0)).first_token_s
        for before in range(17)
    ]
    waits = [round((at_s - first_s[0]) / decode_s) for at_s in first_s]
    assert waits[:9] == [0, 15, 25, 35, 45, 55, 65, 75, 80]
    assert waits[9:] == [wait + 80 for wait in waits[1:9]]


@pytest.mark.parametrize("seed", range(2))
def test_of_a_flood_those_are_taken_that_have_their_first_token_in_time(seed: int) -> None:
    """Ten for each that can be answered, at a pipeline of two stages. What they are taken for ends
    in bursts as it began, and decodes in two steps."""
    chance, deadline_s, now_s = random.Random(seed), 1.0, 0.0
    settings = SchedulerSettings(128, 32, 4, 1000, max_drafts=0, share_prefixes=False)
    driver, gauge, predictor = Driver(settings, 1024, 2), LoadGauge(), Predictor()
    driver.took_s = lambda rows: STEP_S + ROW_S * rows
    asked: dict[str, tuple[float, float]] = {}
    first_s: list[float] = []
    due_s, told_s = 0.0, 0.0
    while now_s < 40:
        if now_s >= told_s:
            predictor.told("f", gauge.read(driver.scheduler), now_s)
            told_s = now_s + 0.25
        while due_s <= now_s:
            name = f"{due_s:.6f}"
            one = Comer.of(request(name, 60, 40))
            said = predictor.predict("f", one)
            assert said is not None
            if now_s + said.surely_s <= due_s + deadline_s:
                asked[name] = due_s, said.first_token_s
                predictor.sent("f", one, now_s)
                driver.start(name, 60, 40)
            due_s += chance.expovariate(120)
        while (step := driver.depart()) is not None:
            gauge.departed(step, now_s)
        if not driver.flights:
            now_s = due_s
            continue
        step, before = driver.flights[0][0], set(driver.stopped)
        now_s += driver.took_s(step.batch.rows)
        driver.arrive()
        gauge.came_back(step.number, driver.took_s(step.batch.rows), now_s)
        for _ in driver.stopped - before:
            gauge.answered(40, at_limit=True)
        for name in [n for n in asked if driver.outputs[n]]:
            asked_s, said_s = asked.pop(name)
            predictor.measured("f", said_s, now_s - asked_s)
            if asked_s > 5:
                first_s.append(now_s - asked_s)
    late = [took_s for took_s in first_s if took_s > deadline_s]
    print(
        f"{len(first_s)} taken, {len(late)} late, p99 {sorted(first_s)[-len(first_s) // 100]:.2f}"
    )
    assert len(first_s) > 200
    assert len(late) < 0.01 * len(first_s)
    assert max(first_s) < 1.1 * deadline_s


def test_what_was_sent_since_a_head_told_its_load_counts() -> None:
    predictor = Predictor()
    predictor.told("f", IDLE, 0.0)
    first = predictor.predict("f", comer())
    for _ in range(40):
        predictor.sent("f", comer(), 1.0)
    later = predictor.predict("f", comer())
    assert first is not None
    assert later is not None
    assert later.first_token_s > 20 * first.first_token_s
    predictor.told("f", IDLE, 1.0 + UNDERWAY_S / 2)
    assert predictor.predict("f", comer()) == later, "it was on its way when that was told"
    predictor.told("f", IDLE, 1.1 + UNDERWAY_S)
    assert predictor.predict("f", comer()) == first


def test_a_burst_fills_the_places_before_it_queues() -> None:
    predictor = Predictor()
    predictor.told("f", IDLE, 0.0)
    rooms = []
    for _ in range(10):
        rooms.append(predictor.has_room("f", comer(lane=1)))
        predictor.sent("f", comer(lane=1), 0.0)
    assert rooms == [True] * 8 + [False] * 2
    assert predictor.has_room("f", comer()), "tolerant work gives its places up"
    assert predictor.has_room("unknown", comer(lane=1))


def test_predictions_that_are_off_are_corrected_within_bounds() -> None:
    predictor = Predictor()
    predictor.told("f", busy(held("", 8, queued=20)), 0.0)
    for _ in range(300):
        said = predictor.predict("f", comer())
        assert said is not None
        predictor.measured("f", said.first_token_s, 3.0)
    said = predictor.predict("f", comer())
    assert said is not None
    assert said.first_token_s == pytest.approx(3.0, rel=0.05)
    for _ in range(1000):
        predictor.measured("f", 1.0, 1000.0)
    most = predictor.predict("f", comer())
    assert most is not None
    assert most.first_token_s <= 4.0 * predict(busy(held("", 8, queued=20)), comer()).first_token_s
    predictor.keep(())
    assert predictor.predict("f", comer()) is None
    predictor.measured("f", 1.0, 2.0)


def test_where_predictions_are_often_off_more_time_is_left() -> None:
    sure, unsure = Predictor(), Predictor()
    for predictor, wrong in ((sure, 1.02), (unsure, 1.6)):
        predictor.told("f", busy(held("", 8, queued=20)), 0.0)
        for number in range(400):
            said = predictor.predict("f", comer())
            assert said is not None
            predictor.measured(
                "f", said.first_token_s, said.first_token_s * wrong ** (-1) ** number
            )
    ratios = []
    for predictor in (sure, unsure):
        said = predictor.predict("f", comer())
        assert said is not None
        ratios.append(said.surely_s / said.first_token_s)
    assert ratios == pytest.approx([1.02, 1.6], rel=0.1)
