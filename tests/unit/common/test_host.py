from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common.host import usable_cores, usable_memory_bytes

MINE = len(os.sched_getaffinity(0))


def host(root: Path, group: str = "", **files: str) -> Path:
    """A host on which this process is in a control group; files by name, `/` written `__`."""
    for name, text in {"proc__self__cgroup": f"1:cpu:/old\n0::/{group}\n", **files}.items():
        path = root.joinpath(*name.replace("_max", ".max").split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("said", "cores"), [("max 100000", MINE), ("50000 100000", 0.5), ("nonsense", MINE)]
)
def test_cores_are_those_of_the_affinity_and_of_the_control_group(
    tmp_path: Path, said: str, cores: float
) -> None:
    assert usable_cores(tmp_path) == MINE
    assert usable_cores(host(tmp_path, sys__fs__cgroup__cpu_max=said)) == cores


def test_the_tightest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        "a/b",
        sys__fs__cgroup__a__b__cpu_max="max 100000",
        sys__fs__cgroup__a__cpu_max="25000 100000",
        sys__fs__cpu_max="1 100000",
        sys__fs__cgroup__a__b__memory_max="9000",
        sys__fs__cgroup__memory_max="7000",
    )
    assert usable_cores(root) == 0.25
    assert usable_memory_bytes(root) == 7000


def test_memory_is_the_host_s_where_no_limit_is_less(tmp_path: Path) -> None:
    assert usable_memory_bytes(tmp_path) is None
    root = host(tmp_path, proc__meminfo="MemFree: 3 kB\nMemTotal:    8 kB")
    assert usable_memory_bytes(root) == 8192
    assert usable_memory_bytes(host(root, sys__fs__cgroup__memory_max="max")) == 8192
    assert usable_memory_bytes(host(root, proc__meminfo="MemTotal:")) is None
