from __future__ import annotations

from services.engine.core.pace import GLANCE_S, SLACK, Pace


def _watch(pace: Pace, start_s: float, end_s: float) -> bool:
    """Looks every 50 ms as a ticker would; the answer at the end."""
    now_s, overdue = start_s, False
    while now_s <= end_s:
        overdue = pace.overdue(now_s)
        now_s += 0.05
    return overdue


def test_a_step_that_stays_away_is_overdue_after_its_allowance() -> None:
    pace = Pace(2.0, row_s=0.01)
    pace.overdue(0.0)
    pace.departed(1, 8, 0.0)
    allowance_s = 2.0 + SLACK * 8 * 0.01
    assert not _watch(pace, 0.05, allowance_s - 0.1)
    assert _watch(pace, allowance_s, allowance_s + 0.2)


def test_nothing_is_overdue_when_nothing_is_in_flight() -> None:
    pace = Pace(1.0)
    pace.departed(1, 1, 0.0)
    pace.came_back(1, 0.1)
    assert not _watch(pace, 0.1, 60.0)


def test_a_slow_machine_gets_more_time_for_more_rows() -> None:
    slow, quick = Pace(1.0), Pace(1.0)
    for step in range(40):
        slow.departed(step, 1, float(step))
        slow.came_back(step, step + 0.5)
        quick.departed(step, 1, float(step))
        quick.came_back(step, step + 0.01)
    for pace in (slow, quick):
        pace.departed(40, 10, 40.0)
        pace.overdue(40.0)
    assert not _watch(slow, 40.05, 55.0)
    assert _watch(quick, 40.05, 55.0)


def test_a_step_behind_another_starts_its_clock_when_that_came_back() -> None:
    pace = Pace(1.0, row_s=0.0)
    pace.overdue(0.0)
    pace.departed(1, 1, 0.0)
    pace.departed(2, 1, 0.0)
    _watch(pace, 0.05, 0.9)
    pace.came_back(1, 0.95)
    assert not _watch(pace, 0.95, 1.5)
    assert _watch(pace, 1.55, 3.5)


def test_a_process_that_was_stopped_itself_does_not_blame_others() -> None:
    pace = Pace(1.0, row_s=0.0)
    pace.overdue(0.0)
    pace.departed(1, 1, 0.0)
    assert not pace.overdue(100.0)
    assert not _watch(pace, 100.0, 101.0 - GLANCE_S - 0.1)
    assert _watch(pace, 101.0, 101.5)
