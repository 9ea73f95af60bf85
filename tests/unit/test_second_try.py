from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_try import AT_MOST

FAILS_FIRST = """
import pathlib, pytest

@pytest.mark.parametrize("number", range({count}))
def test_fails_first(number, request):
    tried = pathlib.Path("{folder}") / f"tried-{{number}}"
    before = tried.exists()
    tried.touch()
    assert before, "a busy machine"
"""
ROOT = Path(__file__).parents[2]


def _run(folder: Path, file: str, count: int, ci: str = "true") -> subprocess.CompletedProcess[str]:
    path = folder / file
    path.parent.mkdir(parents=True)
    path.write_text(FAILS_FIRST.format(count=count, folder=folder))
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = ("-p", "pytest_rerunfailures", "-p", "tests.second_try", "-p", "no:cacheprovider")
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, file],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_what_passes_at_the_second_try_passes_and_its_first_is_told_whole(tmp_path: Path) -> None:
    run = _run(tmp_path, "tests/mesh/test_made.py", 1)
    assert run.returncode == 0, run.stdout
    assert "first try of tests/mesh/test_made.py::test_fails_first[0]" in run.stdout
    assert "AssertionError: a busy machine" in run.stdout
    assert "1 passed, 1 rerun" in run.stdout


def test_a_run_that_needs_many_second_tries_fails(tmp_path: Path) -> None:
    run = _run(tmp_path, "tests/contract/test_made.py", AT_MOST + 1)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert f"{AT_MOST + 1} tests were tried twice, {AT_MOST} may be" in run.stdout


@pytest.mark.parametrize(
    ("file", "ci"), [("tests/simulation/test_made.py", "true"), ("tests/mesh/test_made.py", "")]
)
def test_neither_a_simulation_nor_anything_by_hand_is_tried_again(
    tmp_path: Path, file: str, ci: str
) -> None:
    run = _run(tmp_path, file, 1, ci)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert "1 failed in" in run.stdout, run.stdout
