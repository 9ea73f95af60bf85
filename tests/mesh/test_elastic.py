"""A mesh follows what is taken from it and offered to it, and its readers notice neither."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from bench import elastic

PATIENCE_S = 120.0


async def test_nodes_that_go_and_come_change_the_plan_and_no_text(tmp_path: Path) -> None:
    figures = await elastic.measured(tmp_path, within_s=PATIENCE_S)
    assert figures["failed"] == []
    assert figures["differ"] == []
    phases = figures["phases"]
    assert [phase["name"] for phase in phases] == ["noticed", "offered", "killed"]
    assert all(a["plan"] < b["plan"] for a, b in pairwise(phases))
    assert phases[0]["serves_s"] < elastic.NOTICE_S, "the smaller plan serves before the deadline"
    print(phases, figures["planned_moves"], figures["planned_gap_less_replay_s"])
