"""A thousand simulated meshes whose pipelines have phases; forty of them are in the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCHEDULES = 1000


@pytest.mark.timeout(3600)
def test_generations_begin_and_go_on_where_the_plan_says_a_thousand_times() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/simulation/splits.py"), "10000", str(SCHEDULES), "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
