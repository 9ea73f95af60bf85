"""Tenants and classes in one batch."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.fair_queue import ROUND
from services.common.generation import PriorityClass
from services.engine.core import turns
from services.engine.core.scheduler import SchedulerSettings
from services.engine.core.turns import WELL_AHEAD
from tests.driven_scheduler import Driver, expected, key

TOLERANT, PROTECTED = PriorityClass.TOLERANT, PriorityClass.PROTECTED


def run_until(driver: Driver, name: str) -> int:
    """Steps until its first token."""
    before = len(driver.steps)
    while not driver.outputs[name]:
        driver.depart()
        driver.arrive()
    return len(driver.steps) - before


def names_of(driver: Driver) -> list[str]:
    """In the order in which they ran first."""
    return list(dict.fromkeys(k.generation_id for step in driver.steps for k in step.keys))


def test_tolerant_work_gives_its_place_up_at_once_and_loses_nothing() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 64, 1)
    for index in range(6):
        driver.start(f"batch-{index}", 4, 40, priority=TOLERANT)
    for _ in range(3):
        driver.depart()
        driver.arrive()
    assert driver.scheduler.running == 4
    driver.start("live", 30, 2)
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("live"),), "no tolerant row beside a prompt that is waited for"
    assert driver.scheduler.preemptions == 1
    driver.arrive()
    driver.finish()
    assert driver.outputs == {
        "live": expected(30, 2),
        **{f"batch-{index}": expected(4, 40) for index in range(6)},
    }


def test_what_nobody_reads_gives_way_before_tolerant_work_that_is_read() -> None:
    driver = Driver(SchedulerSettings(64, 2, 8, 1000), 64, 1)
    driver.start("unread", 4, 40)
    driver.start("batch", 4, 40, priority=TOLERANT)
    for _ in range(2):
        driver.depart()
        driver.arrive()
    driver.scheduler.set_unread(key("unread"), True)
    driver.start("live", 4, 20)
    for _ in range(3):
        driver.depart()
        driver.arrive()
    last = driver.steps[-1].keys
    assert key("live") in last
    assert key("batch") in last
    assert key("unread") not in last


def test_a_tenant_that_floods_does_not_keep_another_waiting() -> None:
    driver = Driver(SchedulerSettings(64, 8, 8, 1000), 256, 1)
    for index in range(40):
        driver.start(f"flood-{index}", 20, 60, tenant="flood")
    for _ in range(30):
        driver.depart()
        driver.arrive()
    assert driver.scheduler.running == 8
    driver.start("quiet", 20, 4, tenant="quiet")
    assert run_until(driver, "quiet") == 1, "it has a place, and the next step for itself"
    assert driver.scheduler.preemptions == 1
    driver.finish()
    assert driver.outputs["quiet"] == expected(20, 4)
    assert all(driver.outputs[f"flood-{index}"] == expected(20, 60) for index in range(40))


def flooded(row_s: float) -> Driver:
    """A flood that reads prompts as places become free, beside decodes in two steps in flight; a
    step takes 10 ms, and so long a row."""
    settings = SchedulerSettings(64, 8, 4, 16, hurried_rows=16, share_prefixes=False)
    driver = Driver(settings, 1024, 2)
    driver.took_s = lambda rows: 0.010 + row_s * rows
    for index in range(80):
        driver.start(f"flood-{index}", 100, 10 + index % 7, tenant="flood")
    for _ in range(40):
        while driver.depart():
            pass
        driver.arrive()
    return driver


def rows(driver: Driver, since: int) -> list[int]:
    return [step.batch.rows for step in driver.steps[since:]]


@pytest.mark.parametrize(("row_s", "least", "most"), [(0.002, 9, 16), (0.0002, 30, 56)])
def test_steps_are_short_where_another_tenant_that_has_had_less_may_ask_again(
    row_s: float, least: int, most: int
) -> None:
    """Or as long again as they are without prompts, where rows are cheap."""
    driver = flooded(row_s)
    assert max(rows(driver, 0)) == 64, "nobody else has asked"
    driver.start("quiet-1", 20, 2, tenant="quiet")
    before = len(driver.steps)
    while not driver.outputs["quiet-1"]:
        while driver.depart():
            pass
        driver.arrive()
    own = [s.batch.rows for s in driver.steps[before:] if key("quiet-1") in s.keys]
    assert own[0] == 20, "its own prompt is read at once"
    before = len(driver.steps)
    for _ in range(20):
        while driver.depart():
            pass
        driver.arrive()
    assert least < max(rows(driver, before)) <= 8 + most, "decodes, and a few rows of prompts"


@pytest.mark.parametrize(("tenant", "beside"), [("flood", False), ("quiet", True)])
def test_who_is_awaited_by_others_that_pause_does_not_wait_for_a_step_in_flight(
    tenant: str, beside: bool
) -> None:
    driver = Driver(SchedulerSettings(64, 8, 8, 1000), 256, 2)
    for index in range(4):
        driver.start(f"flood-{index}", 4, 40, tenant="flood")
    for _ in range(4):
        driver.depart()
        driver.arrive()
    driver.depart()
    driver.start("new", 10, 2, tenant=tenant)
    step = driver.depart()
    assert (step is not None and step.keys == (key("new"),)) is beside


def full(places: int, priority: PriorityClass = PriorityClass.STANDARD) -> Driver:
    """A flood has all steps in flight that its stages can work on, behind a quiet tenant's."""
    driver = Driver(SchedulerSettings(64, places, 2, 1000, share_prefixes=False), 1024, 2)
    for index in range(80):
        driver.start(f"flood-{index}", 60, 20 + index % 7, tenant="flood", priority=priority)
    driver.start("quiet-1", 20, 2, tenant="quiet")
    for _ in range(100):
        fly(driver)
        driver.arrive()
    fly(driver)
    assert driver.scheduler.in_flight == 2
    return driver


def fly(driver: Driver) -> None:
    """All steps depart that may."""
    while driver.depart():
        pass


def test_who_is_awaited_is_on_its_way_before_any_step_has_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "KEPT_OF", 8)
    driver = full(places=8)
    driver.start("flood", 20, 2, tenant="flood")
    assert driver.depart() is None
    driver.start("quiet-2", 100, 2, tenant="quiet")
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("quiet-2"),)
    assert driver.depart() is None, "one step more than there are stages, and no further"
    driver.finish()
    assert driver.outputs["quiet-2"] == expected(100, 2)


@pytest.mark.parametrize(("places", "kept"), [(8, 1), (4, 0)])
def test_a_flood_leaves_a_place_to_a_tenant_that_asked_of_late(
    monkeypatch: pytest.MonkeyPatch, places: int, kept: int
) -> None:
    monkeypatch.setattr(turns, "KEPT_OF", 8)
    driver = full(places)
    assert driver.scheduler.running == places - kept
    driver.start("quiet-2", 20, 2, tenant="quiet")
    step = driver.depart()
    assert (step is not None and step.keys == (key("quiet-2"),)) is bool(kept)
    assert driver.scheduler.preemptions == 0, "nobody is computed again for it"
    driver.finish()
    assert driver.scheduler.preemptions == 1 - kept


@pytest.mark.parametrize("yielding", ["unread", "tolerant"])
def test_a_kept_place_does_not_stop_who_is_read_before_all_that_runs(
    monkeypatch: pytest.MonkeyPatch, yielding: str
) -> None:
    """All that runs pauses for the one that waits: if that could not enter, no step would."""
    monkeypatch.setattr(turns, "KEPT_OF", 8)
    driver = full(8, TOLERANT if yielding == "tolerant" else PriorityClass.STANDARD)
    for index in range(80 if yielding == "unread" else 0):
        driver.scheduler.set_unread(key(f"flood-{index}"), True)
    while driver.flights:
        driver.arrive()
    assert driver.scheduler.running == 7, "a place is kept"
    driver.start("live", 20, 2, tenant="flood")
    assert run_until(driver, "live") == 1
    assert driver.scheduler.running == 7, "the place is still kept"
    driver.finish()
    assert driver.outputs["live"] == expected(20, 2)


def test_who_took_a_place_from_another_has_it_whoever_may_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else that one would be computed again for a place that nobody has."""
    monkeypatch.setattr(turns, "KEPT_OF", 8)
    driver = Driver(SchedulerSettings(64, 8, 8, 1000, share_prefixes=False), 1024, 1)
    driver.start("busy-1", 6 * ROUND, 2, tenant="busy")
    driver.finish()
    for index in range(8):
        driver.start(f"batch-{index}", 4, 40, tenant="batch", priority=TOLERANT)
    fly(driver)
    driver.arrive()
    driver.start("quiet", 4, 40, tenant="quiet")  # far behind both others
    fly(driver)
    driver.arrive()
    assert (driver.scheduler.running, driver.scheduler.preemptions) == (8, 1)
    driver.start("busy-2", 4, 4, tenant="busy")
    fly(driver)
    assert (driver.scheduler.running, driver.scheduler.preemptions) == (8, 2)
    driver.arrive()
    driver.finish()
    assert driver.outputs["busy-2"] == expected(4, 4)
    assert all(driver.outputs[f"batch-{index}"] == expected(4, 40) for index in range(8))


def test_a_place_is_kept_for_nobody_that_has_not_asked_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "KEPT_OF", 8)
    monkeypatch.setattr(turns, "LATELY_STEPS", 150)
    driver = full(places=8)
    driver.start("quiet-2", 20, 40, tenant="quiet")
    asked = len(driver.steps)
    held: dict[str, set[int]] = {"there": set(), "of late": set(), "long ago": set()}
    while driver.scheduler.queued > 10:
        fly(driver)
        when = "of late" if len(driver.steps) <= asked + 150 else "long ago"
        when = when if "quiet-2" in driver.stopped else "there"
        held[when].add(driver.scheduler.running)
        driver.arrive()
    assert max(held["there"]) == 8, "it has the place that was kept"
    assert max(held["of late"]) == 7
    assert max(held["long ago"]) == 8
    assert driver.scheduler.preemptions == 0


def test_a_tenant_that_has_not_asked_for_long_keeps_no_steps_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "LATELY_STEPS", 150)
    settings = SchedulerSettings(64, 8, 4, 16, hurried_rows=16, share_prefixes=False)
    driver = Driver(settings, 1024, 1)
    driver.took_s = lambda rows: 0.002 * rows
    driver.start("quiet", 20, 2, tenant="quiet")
    for index in range(80):
        driver.start(f"flood-{index}", 60, 2, tenant="flood")
    driver.finish()
    lengths = rows(driver, 0)
    assert 150 < len(lengths) < 500
    assert max(lengths[100:150]) <= 16 + 8, "the flood is well ahead"
    driver.start("flood", 60, 2, tenant="flood")
    driver.finish()
    assert max(rows(driver, len(lengths))) == 60


def test_a_tenant_that_has_not_asked_for_long_is_forgotten_though_nobody_else_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "LATELY_STEPS", 60)
    driver = Driver(SchedulerSettings(64, 8, 4, 16, share_prefixes=False), 1024, 1)
    driver.took_s = lambda rows: 0.002 * rows
    driver.start("flood", 4 * ROUND, 2, tenant="flood")
    driver.start("quiet", 4, 2, tenant="quiet")
    driver.finish()
    lengths = rows(driver, 0)
    assert max(lengths[40:60]) == 16, "the quiet one may ask again"
    assert lengths[-3] == 64, "it has not asked for long"


def test_of_many_tenants_that_asked_of_late_the_last_ones_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "MAX_LATELY", 3)
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 1024, 1)
    for index in range(9):
        driver.start(str(index), 4, 2, tenant=f"tenant-{index % 5}")
    asked = driver.scheduler._turns._asked
    assert list(asked) == ["tenant-1", "tenant-2", "tenant-3"]
    driver.finish()


def test_a_tenant_alone_takes_no_place_from_itself_whatever_it_asks() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 256, 1)
    for index in range(12):
        driver.start(str(index), 20, 30, tenant="one", priority=(PROTECTED, TOLERANT)[index < 4])
    for index in range(12, 20):
        driver.start(str(index), 20, 30, tenant="one")
    driver.finish()
    assert driver.scheduler.preemptions == 0
    order = names_of(driver)
    assert order == [*map(str, range(4, 20)), *map(str, range(4))]


def test_places_are_taken_only_down_to_what_a_tenants_weight_is_worth() -> None:
    driver = Driver(SchedulerSettings(64, 8, 8, 1000), 512, 1)
    for index in range(20):
        driver.start(f"a{index}", 4, 400, tenant="a", weight=3)
    for _ in range(10):
        driver.depart()
        driver.arrive()
    for index in range(20):
        driver.start(f"b{index}", 4, 400, tenant="b")
    for _ in range(100):
        driver.depart()
        driver.arrive()
    held = Counter(k.generation_id[0] for k in driver.steps[-1].keys)
    assert held == {"a": 6, "b": 2}
    assert driver.scheduler.preemptions == 2, "nobody is taken a place from for nothing"


def test_tenants_that_are_about_level_share_steps() -> None:
    driver = Driver(SchedulerSettings(64, 8, 8, 1000), 512, 1)
    for tenant in ("a", "b"):
        driver.start(f"{tenant}-long", 4, 300, tenant=tenant)
    for _ in range(20):
        driver.depart()
        driver.arrive()
    driver.start("a-new", 20, 2, tenant="a")
    step = driver.depart()
    assert step is not None
    assert {k.generation_id for k in step.keys} == {"a-long", "b-long", "a-new"}


def test_who_is_well_ahead_pauses_while_another_reads_its_prompt_and_no_longer() -> None:
    driver = Driver(SchedulerSettings(16, 8, 8, 1000), 512, 1)
    driver.start("ahead", 4, 4 * ROUND, tenant="a")
    for _ in range(WELL_AHEAD * ROUND):
        driver.depart()
        driver.arrive()
    driver.start("behind", 40, 20, tenant="b")
    assert run_until(driver, "behind") == 3
    assert all(step.keys == (key("behind"),) for step in driver.steps[-3:])
    driver.depart()
    assert set(driver.steps[-1].keys) == {key("ahead"), key("behind")}


@pytest.mark.parametrize("held", [0, 30])
def test_what_was_computed_elsewhere_or_before_costs_a_tenant_nothing(held: int) -> None:
    driver = Driver(SchedulerSettings(64, 1, 8, 1000, share_prefixes=False), 256, 1)
    driver.start("mine", 8, 40, held=held, tenant="a")
    driver.finish()
    (had,) = driver.scheduler._turns._shares._had.values()
    # The last token is told, and not computed with.
    assert had == 8 + 40 - 1 - (8 + held if held else 0)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32))
def test_tenants_that_flood_get_tokens_by_their_weights(seed: int) -> None:
    chance = random.Random(seed)
    places = chance.randint(2, 6)
    driver = Driver(SchedulerSettings(64, places, 8, 1000), 400, 1)
    weights = {"a": chance.randint(1, 3), "b": 1}
    longest, number = chance.choice((10, 80)), 0
    waiting: Counter[str] = Counter()
    seen: set[str] = set()
    for _ in range(2000):
        for tenant, weight in weights.items():
            while waiting[tenant] < 2 * places:
                number += 1
                prompt, count = chance.randint(1, 40), chance.randint(1, longest)
                driver.start(f"{tenant}{number}", prompt, count, tenant=tenant, weight=weight)
                waiting[tenant] += 1
        assert driver.depart() is not None
        driver.arrive()
        for name in driver.stopped - seen:
            waiting[name[0]] -= 1
        seen |= driver.stopped
    had = driver.scheduler._turns._shares._had
    assert abs(had["a"] - had["b"]) <= (WELL_AHEAD + 2) * ROUND
    assert driver.scheduler.preemptions <= number
