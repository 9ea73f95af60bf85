"""A mesh follows what is taken from it and offered to it, and its readers notice neither."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from bench import elastic

PATIENCE_S = 120.0
IMPORTS_S = 2.0
"""An engine is imported within this where the market's times are long enough."""
LONGEST = 2.0
ENGINE = (sys.executable, "-c", "import services.engine.__main__")


async def slowness() -> float:
    """How many times more time this machine needs, just now."""
    began_s = time.monotonic()
    engine = await asyncio.create_subprocess_exec(*ENGINE)
    assert await engine.wait() == 0
    return min(max(1.0, (time.monotonic() - began_s) / IMPORTS_S), LONGEST)


@pytest.mark.timeout(400)
async def test_nodes_that_go_and_come_change_the_plan_and_no_text(tmp_path: Path) -> None:
    slow = await slowness()
    figures = await elastic.measured(tmp_path, within_s=slow * PATIENCE_S, slowness=slow)
    assert figures["failed"] == []
    assert figures["differ"] == []
    phases = figures["phases"]
    assert [phase["name"] for phase in phases] == ["noticed", "offered", "killed"]
    assert all(a["plan"] < b["plan"] for a, b in pairwise(phases))
    assert phases[0]["serves_s"] < slow * elastic.NOTICE_S, "it serves before the deadline"
    print(slow, phases, figures["planned_moves"], figures["planned_gap_less_replay_s"])
