"""What other pipelines have computed is fetched where that is sooner, and no peer is waited for
longer than computing takes."""

from __future__ import annotations

from services.common.exchange import PrefixHolder
from services.engine.core.prefix_fetching import (
    AGAIN_S,
    CALLS_S,
    MISSED_S,
    PrefixFetching,
    PrefixSettings,
    Worth,
)
from services.engine.core.scheduler import Scheduler, SchedulerSettings

A, B = (PrefixHolder("h:1", name, 1600) for name in ("a", "b"))
BLOCK_BYTES = 1_000_000
ROW_S, STEP_S = 0.001, 0.1
"""A block takes 16 ms to compute beside its part of a step of 256 rows, and 10 ms to come."""


def stepped(steps: int = 400) -> Scheduler:
    """Whose steps have shown what rows cost."""
    scheduler = Scheduler(SchedulerSettings(token_budget=256), 64, 1)
    for number in range(steps):
        rows = 1 + 255 * (number % 2)
        scheduler.step_cost.observe(rows, STEP_S + ROW_S * rows)
    return scheduler


def fetching(fetch_s: float = 2.0, bytes_per_s: float = 1e8) -> PrefixFetching:
    settings = PrefixSettings(fetch_s, unseen_bytes_per_s=bytes_per_s)
    return PrefixFetching(settings, BLOCK_BYTES)


def worth(prefixes: PrefixFetching, blocks: int, now_s: float = 0.0) -> Worth | None:
    return prefixes.worth(A, blocks, stepped(), now_s)


def test_it_is_fetched_where_that_takes_less_time_than_its_rows() -> None:
    found = worth(fetching(), 100)
    assert found is not None
    assert found.blocks == 100
    assert worth(fetching(bytes_per_s=4e7), 100) is None, "a block comes no sooner than it is read"
    assert worth(fetching(), 0) is None


def test_few_blocks_are_computed_sooner_than_asked_for() -> None:
    scheduler = Scheduler(SchedulerSettings(token_budget=256), 64, 1)
    for number in range(400):
        rows = 1 + 255 * (number % 2)
        scheduler.step_cost.observe(rows, ROW_S * rows)
    least = next(n for n in range(100) if fetching().worth(A, n, scheduler, 0.0) is not None)
    assert abs(least - CALLS_S / (16 * ROW_S - BLOCK_BYTES / 1e8)) < 2


def test_it_is_waited_for_no_longer_than_computing_it_takes_or_the_setting_says() -> None:
    found = worth(fetching(fetch_s=60.0), 100)
    assert found is not None
    assert abs(found.limit_s - (1600 * ROW_S + 7 * STEP_S)) < 0.1
    assert worth(fetching(), 100) == Worth(100, 2.0)


def test_no_more_is_fetched_than_comes_in_its_time() -> None:
    assert worth(fetching(fetch_s=0.55), 100) == Worth(50, 0.55)
    assert worth(fetching(fetch_s=CALLS_S), 100) is None
    assert worth(fetching(fetch_s=0.0), 100) is None, "it is off"


def test_before_any_step_and_where_blocks_go_nowhere_it_is_computed() -> None:
    assert fetching().worth(A, 100, stepped(0), 0.0) is None
    assert worth(PrefixFetching(PrefixSettings(), 0), 100) is None


def test_what_came_shows_what_the_link_gives() -> None:
    prefixes = fetching()
    prefixes.came(A, 100_000, 1.9 * CALLS_S, 0.0)
    assert worth(prefixes, 100) is not None, "these were calls rather than bytes"
    prefixes.came(A, 2_000_000, CALLS_S + 0.2, 1.0)
    assert worth(prefixes, 100, 1.0) is None
    for _ in range(20):
        prefixes.came(A, 20_000_000, CALLS_S + 0.1, 2.0)
    assert worth(prefixes, 100, 2.0) is not None


def test_a_link_that_seemed_too_slow_is_tried_again() -> None:
    prefixes = fetching()
    prefixes.came(A, 2_000_000, 1.0, 0.0)
    assert worth(prefixes, 100, 0.9 * AGAIN_S) is None
    assert worth(prefixes, 100, AGAIN_S) is not None


def test_who_lets_somebody_wait_in_vain_is_not_asked_again_for_a_while() -> None:
    prefixes = fetching()
    prefixes.came(A, 0, CALLS_S / 2, 0.0)
    assert worth(prefixes, 100) is not None, "a no that comes at once costs nothing"
    prefixes.came(A, 0, 2.0, 1.0)
    assert worth(prefixes, 100, 1.0) is None
    assert prefixes.worth(B, 100, stepped(), 1.0) is not None
    assert worth(prefixes, 100, 1.0 + MISSED_S) is not None
