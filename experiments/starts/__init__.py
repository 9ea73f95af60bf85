"""Where the time goes between an order for a node and a pipeline that serves again."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, played, scenario_at
from experiments.starts.parts import Event, Parts, parts_of
from experiments.starts.rows import FORM, LOAD, PROCESS, ROWS, SIMULATED_ROWS, WHOLE
from experiments.table import Cell, Column, Rows

FOLDER = Path(__file__).parent
SCENARIOS = FOLDER.parent / "spot_tolerance"
SIMULATED = {"70B, simulated s": "scenario-a", "32B, simulated s": "32b-scenario-a"}
MESH = "local mesh, measured s"
HORIZON_S = 600.0
"""Nodes are taken at 300 s, and those that follow them serve before its end."""
KILLS = {Size.QUICK: 3, Size.FULL: 12}
"""Of nodes of the local mesh; a tiny run has none."""
LOADS = {Size.QUICK: 1, Size.FULL: 5}
"""From each source."""
COLUMNS = (*(Column(name, ".2f") for name in SIMULATED), Column(MESH, ".2f", measured=True))


def measure(ground: Ground) -> Rows:
    """Nodes that follow those which scenario A takes, by model; and beside them, where the size has
    it, those of a real mesh on this machine, with what each part is made of."""
    plays = [
        Play(column, scenario_at(SCENARIOS / f"{name}.yaml", HORIZON_S))
        for column, name in SIMULATED.items()
    ]
    columns: dict[str, dict[str, Cell]] = {}
    for column, (outcome, *_) in played(FOLDER.name, plays, ground).items():
        events = (
            Event(one.at_s, one.kind, one.node_id, one.pipeline_id) for one in outcome.happened
        )
        columns[column] = medians(parts_of(events))
    if ground.size in KILLS and ground.measures:
        columns[MESH] = _measured(ground.size)
    return {
        row: {column: cells[row] for column, cells in columns.items() if row in cells}
        for row in (ROWS if ground.size in KILLS else SIMULATED_ROWS)
    }


def _measured(size: Size) -> dict[str, Cell]:
    from experiments.starts import measured, sources  # who simulates alone starts no mesh

    with tempfile.TemporaryDirectory(prefix="shunt-starts-") as root:
        data_dir, other = Path(root) / "mesh", Path(root) / "other"
        data_dir.mkdir()
        other.mkdir()
        starts = asyncio.run(measured.starts(data_dir, KILLS[size]))
        from_each = sources.seconds(data_dir / "store", measured.MODEL, other, LOADS[size])
    return {**medians([one.parts for one in starts]), **measured.medians(starts), **from_each}


def medians(parts: Sequence[Parts]) -> dict[str, Cell]:
    """By row; of none where nobody followed."""
    return {
        name: median(getattr(one, field) for one in parts) if parts else None
        for name, field in (
            (PROCESS, "process_s"),
            (LOAD, "load_s"),
            (FORM, "form_s"),
            (WHOLE, "whole_s"),
        )
    }


EXPERIMENT = Experiment(
    FOLDER.name,
    "Seconds between an order for a node and a pipeline that serves again",
    COLUMNS,
    measure,
    "70B, simulated s",
)
