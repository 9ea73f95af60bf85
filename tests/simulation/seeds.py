"""A kind of schedule as a program: `python FILE FIRST COUNT PATIENCE [JOBS]`."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NoReturn, Protocol, TypeVar

AT_ONCE = 4
"""Seeds that a process of many takes at a time."""


class Schedule(Protocol):
    """One world, made of a seed."""

    def run(self) -> None:
        """Raises Violation."""


S = TypeVar("S", bound=Schedule)
Played = tuple[Counter[Any], str]
"""What happened in a schedule, and what broke it; empty: nothing did."""


def program(
    kind: Callable[[int], S],
    happened: Callable[[S], Mapping[Any, int]],
    shown: Callable[[Counter[Any]], object] = dict,
) -> NoReturn:
    """Runs COUNT seeds from FIRST on until PATIENCE of them broke an invariant, JOBS at a time,
    says which did and what happened in all of them, and exits with 1 if any did."""

    def play(seed: int) -> Played:
        schedule, why = kind(seed), ""
        try:
            schedule.run()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            why = f"seed {seed}: {type(error).__name__}: {error} ({where.name})"
        return Counter(happened(schedule)), why

    first, count, patience, *jobs = map(int, sys.argv[1:])
    broken, total = 0, Counter[Any]()
    seeds = range(first, first + count)
    for found, why in _at_once(play, seeds, *jobs) if jobs else map(play, seeds):
        total.update(found)
        if why:
            broken += 1
            print(why)
            if broken == patience:
                break
    print(shown(total))
    sys.exit(broken > 0)


_inherited: list[Callable[[int], Played]] = []
"""What a process of many plays."""


def _at_once(play: Callable[[int], Played], seeds: range, jobs: int) -> Iterator[Played]:
    """In so many processes. They are forks: nothing here has threads or sockets yet."""
    pool = ProcessPoolExecutor(jobs, get_context("fork"), _inherited.append, (play,))
    try:
        yield from pool.map(_play, seeds, chunksize=AT_ONCE)
    finally:
        pool.shutdown(cancel_futures=True)


def _play(seed: int) -> Played:
    return _inherited[0](seed)
