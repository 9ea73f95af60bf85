from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests import lanes

ROOT = Path(__file__).parents[2]
IMPORTS = "from importlib.util import find_spec\nfrom typing import Any\n\nimport pytest\n"


def test_all_tests_with_a_mesh_are_in_one_lane() -> None:
    found = {lanes.lane(f"tests/mesh/{name}.py::test_it[a::b]") for name in ("test_a", "test_b")}
    assert found == {"tests/mesh"}


def test_tests_of_a_file_share_its_fixtures_and_a_lane() -> None:
    file = "tests/contract/router/test_access.py"
    assert {lanes.lane(f"{file}::{name}") for name in ("test_a", "test_b[1]")} == {file}


def test_a_long_test_has_a_lane_of_its_own() -> None:
    for file in lanes.APART:
        assert (ROOT / file).is_file()
        found = {lanes.lane(f"{file}::{name}") for name in ("test_a", "test_b[1]", "test_b[2]")}
        assert len(found) == 3


def test_the_longest_go_first(request: pytest.FixtureRequest) -> None:
    assert all((ROOT / folder).is_dir() for folder in lanes.ORDER)
    ranks = [lanes.rank(f"{folder}/test_it.py::test_it") for folder in (*lanes.ORDER, "elsewhere")]
    assert all(earlier < later for earlier, later in pairwise(ranks))
    if hasattr(request.config, "workerinput"):
        mine = [lanes.rank(item.nodeid) for item in request.session.items]
        assert mine == sorted(mine)


def test_while_a_mesh_runs_no_more_work_than_there_are_cores() -> None:
    cores = lanes.workers() - 1
    assert lanes.may_begin({"tests/mesh", "tests/unit/test_units.py"}, cores - 1)
    assert not lanes.may_begin({"tests/mesh", "tests/unit/test_units.py"}, cores)
    assert lanes.may_begin({"tests/unit/test_units.py"}, cores)


RUN = """
import os
import time

import pytest


@pytest.mark.parametrize("n", range({tests}))
def test_it(n):
    began = time.time()
    time.sleep({seconds})
    with open({log!r}, "a") as log:
        print({name!r}, os.environ["PYTEST_XDIST_WORKER"], began, time.time(), file=log)
"""


def test_the_worker_that_waits_begins_behind_the_last_mesh(tmp_path: Path) -> None:
    log = tmp_path / "log"
    alone = [(f"unit/test_{n}", 1, 0.2) for n in range(16)]
    for name, tests, seconds in (("mesh/test_a", 3, 0.1), *alone):
        file = tmp_path / f"tests/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(RUN.format(tests=tests, seconds=seconds, log=str(log), name=name))
    shutil.copy(lanes.__file__, tmp_path / "tests/lanes.py")
    hooks = (ROOT / "tests/conftest.py").read_text().split("@pytest.hookimpl")[1:]
    text = "".join(f"@pytest.hookimpl{hook}" for hook in hooks if "def pytest_xdist" in hook)
    (tmp_path / "tests/conftest.py").write_text(f"{IMPORTS}\n{text}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 passed" in done.stdout
    runs = [line.split() for line in log.read_text().splitlines()]
    last = max(float(end) for name, _, _, end in runs if name == "mesh/test_a")

    def most(times: list[tuple[float, float]]) -> int:
        return max(sum(began <= at < ended for began, ended in times) for at, _ in times)

    times = [(float(began), float(ended)) for _, _, began, ended in runs]
    assert most([one for one in times if one[0] < last]) < lanes.workers()
    by_worker = Counter(worker for _, worker, _, _ in runs)
    assert len(by_worker) == min(17, lanes.workers())
    assert lanes.workers() > 4 or min(by_worker.values()) > 1, "one had a test that it did not run"
