"""The window of lines under way."""

from __future__ import annotations

from services.router.core.batches.window import Window


def widened(window: Window, rounds: int) -> None:
    for _ in range(rounds):
        for _ in range(window.size):
            window.answered(window.size)


def test_it_widens_by_one_a_round_while_it_is_full() -> None:
    window = Window(4, 64, 2.0)
    widened(window, 10)
    assert 12 <= window.size <= 14
    for _ in range(100):
        window.answered(3)
    assert window.size <= 14


def test_it_never_passes_its_bound_nor_falls_below_one() -> None:
    window = Window(4, 6, 0.0)
    widened(window, 20)
    assert window.size == 6
    for second in range(20):
        window.refused(float(second), 0.0)
    assert window.size == 1


def test_many_refusals_at_once_halve_it_once() -> None:
    window = Window(16, 64, 2.0)
    for _ in range(10):
        window.refused(5.0, 1.0)
    assert window.size == 8
    assert not window.free(0, 5.9)
    assert window.free(7, 6.0)
    assert not window.free(8, 6.0)


def test_nothing_begins_while_live_requests_wait() -> None:
    window = Window(16, 64, 2.0)
    for tick in range(40):
        now_s = 0.25 * tick
        window.live_waits(now_s)
        assert not window.free(0, now_s + 1.9)
    assert window.size == 1
    assert window.free(0, 9.75 + 2.0)
