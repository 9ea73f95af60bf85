"""Seeds on all cores of the machine: each is a world of its own, and shares nothing."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from markets import MarketSchedule
from schedules import Schedule

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
CORES = max(1, (os.cpu_count() or 1) // WORKERS)
"""This process' share of them."""


def play(kind: type[Schedule] | type[MarketSchedule], seeds: range) -> Counter[Any]:
    """What happened in all of them; raises AssertionError for the first that broke an invariant."""
    happened: Counter[Any] = Counter()
    # Processes of their own start: a fork would take threads and sockets of other tests along.
    pool = ProcessPoolExecutor(CORES, get_context("spawn"))
    try:
        for found, failure in pool.map(partial(_played, kind), seeds, chunksize=10):
            assert not failure, failure
            happened += found
    finally:
        pool.shutdown(cancel_futures=True)
    return happened


def _played(
    kind: type[Schedule] | type[MarketSchedule], seed: int
) -> tuple[Counter[Any], str | None]:
    schedule = kind(seed)
    try:
        schedule.run()
    except Exception:
        return Counter(), f"seed {seed} of {kind.__name__}: {traceback.format_exc()}"
    if isinstance(schedule, Schedule):
        return schedule.hits, None
    return schedule.happened + Counter(plans=len(schedule.oracle.chosen)), None
