"""A thousand simulated meshes whose pipelines have phases; forty of them are in the tests.

SHUNT_SPLITS=FIRST:COUNT says which seeds, SHUNT_SPLITS_JOBS how many at a time: one on each core,
unless told otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST, COUNT = os.environ.get("SHUNT_SPLITS", "10000:1000").split(":")
JOBS = os.environ.get("SHUNT_SPLITS_JOBS", str(os.cpu_count() or 1))
PATIENCE = 3


@pytest.mark.timeout(3600)
def test_generations_begin_and_go_on_where_the_plan_says_a_thousand_times() -> None:
    program = str(ROOT / "tests/simulation/splits.py")
    done = subprocess.run(
        [sys.executable, program, FIRST, COUNT, str(PATIENCE), JOBS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n{COUNT} schedules from {FIRST} on: {done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
