"""A mesh follows what is taken from it and offered to it, and its readers notice neither."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench import elastic
from tests.mesh.slowness import slowness

PATIENCE_S = 120.0


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
