"""A kind of schedule as a program: `python FILE FIRST COUNT PATIENCE`."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar


class Schedule(Protocol):
    """One world, made of a seed."""

    def run(self) -> None:
        """Raises Violation."""


S = TypeVar("S", bound=Schedule)


def program(
    kind: Callable[[int], S],
    happened: Callable[[S], Mapping[Any, int]],
    shown: Callable[[Counter[Any]], object] = dict,
) -> NoReturn:
    """Runs COUNT seeds from FIRST on until PATIENCE of them broke an invariant, says which did and
    what happened in all of them, and exits with 1 if any did."""
    first, count, patience = map(int, sys.argv[1:])
    broken, total = 0, Counter[Any]()
    for seed in range(first, first + count):
        schedule = kind(seed)
        try:
            schedule.run()
        except Exception as error:
            broken += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__}: {error} ({where.name})")
        total.update(happened(schedule))
        if broken == patience:
            break
    print(shown(total))
    sys.exit(broken > 0)
