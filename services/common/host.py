"""What processes here may use of their host: cores, and memory of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_UNIT_BYTES = 1024
"""/proc/meminfo counts in these (proc(5))."""


def usable_cores(root: Path = ROOT) -> float:
    """By the affinity of this process and the limits of its control groups."""
    cores = float(len(os.sched_getaffinity(0)))
    for text in _limits(root, "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():  # none is set where it reads max
            cores = min(cores, int(quota) / int(period))
    return cores


def usable_memory_bytes(root: Path = ROOT) -> int | None:
    """What the host has, or the limits of the control groups where they are less; None where
    nobody says."""
    sizes = [int(text) for text in _limits(root, "memory.max") if text.isdecimal()]
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal" and (words := value.split()) and words[0].isdecimal():
            sizes.append(int(words[0]) * _UNIT_BYTES)
    return min(sizes, default=None)


def _limits(root: Path, name: str) -> Iterator[str]:
    """Of this process' control group and those above it, as far as they are seen here."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, path = line.partition("::")
        if number != "0":  # the unified hierarchy (cgroups(7))
            continue
        group = top / path.lstrip("/")
        for one in (group, *group.parents):
            yield _read(one / name)
            if one == top:
                break


def _read(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
