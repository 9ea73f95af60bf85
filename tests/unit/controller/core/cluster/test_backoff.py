from __future__ import annotations

from services.controller.core.cluster.backoff import Backoff


def pauses(count: int, **more: bool) -> list[float]:
    failing, now_s, found = Backoff(), 0.0, []
    for _ in range(count):
        failing.fail(now_s, "no", first_s=0.5, longest_s=60.0, **more)
        found.append(failing.retry_at_s - now_s)
        now_s = failing.retry_at_s
    return found


def test_the_pause_doubles_up_to_the_longest() -> None:
    assert pauses(9) == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses(200)[-1] == 60.0


def test_the_first_of_a_row_may_be_free() -> None:
    assert pauses(4, free=True) == [0.0, 1, 2, 4]


def test_failures_within_one_pause_count_as_one_and_the_last_cause_is_told() -> None:
    failing = Backoff()
    failing.fail(1.0, "first", first_s=0.5, longest_s=60.0, node_id="n1")
    failing.fail(1.2, "second", first_s=0.5, longest_s=60.0, node_id="n2")
    assert (failing.failures, failing.since_s, failing.retry_at_s) == (1, 1.0, 1.5)
    assert (failing.cause, failing.node_id) == ("second", "n2")
    failing.fail(9.0, "third", first_s=0.5, longest_s=60.0)
    assert (failing.failures, failing.since_s) == (2, 1.0)


def test_what_was_permanent_once_stays_so_until_it_succeeds() -> None:
    failing = Backoff()
    failing.fail(1.0, "never", first_s=0.5, longest_s=60.0, permanent=True)
    failing.fail(9.0, "away", first_s=0.5, longest_s=60.0)
    assert failing.permanent
    failing.succeed()
    assert failing == Backoff(since_s=1.0)
