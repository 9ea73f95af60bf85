"""Times of two calls in turn, the page cache, and the memory of this process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class after:
    """A call with a preparation that is not measured."""

    def __init__(self, before: Callable[[], None], call: Callable[[], None]) -> None:
        self.before, self.call = before, call

    def __call__(self) -> None:
        self.call()


def timed(call: Callable[[], None]) -> float:
    if isinstance(call, after):
        call.before()
        call = call.call
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(ours: Callable[[], None], theirs: Callable[[], None], pairs: int) -> dict[str, Any]:
    """Medians of both and of the ratios theirs / ours (more than one: ours is faster)."""
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        calls = (ours, theirs) if number % 2 else (theirs, ours)
        took = {call: timed(call) for call in calls}
        times.append((took[ours], took[theirs]))
    ratios = [other / own for own, other in times]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours_s": statistics.median(own for own, _ in times),
        "theirs_s": statistics.median(other for _, other in times),
        "pairs": len(times),
    }


def drop(paths: list[Path]) -> None:
    """Makes the page cache forget files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024
