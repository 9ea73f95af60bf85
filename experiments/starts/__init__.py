"""Where the time goes between an order for a node and a pipeline that serves again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, played, scenario_at
from experiments.starts.parts import Event, Parts, parts_of
from experiments.table import Cell, Column, Rows

FOLDER = Path(__file__).parent
SCENARIOS = FOLDER.parent / "spot_tolerance"
SIMULATED = {"70B, simulated s": "scenario-a", "32B, simulated s": "32b-scenario-a"}
MESH, ALONE = "local mesh, measured s", "alone, measured s"
HORIZON_S = 600.0
"""Nodes are taken at 300 s, and those that follow them serve before its end."""
PROCESS, LOAD, FORM, WHOLE = (
    "order to registered",
    "registered to loaded",
    "loaded to serving",
    "whole",
)
PYTHON, IMPORTS, PACKED, TESTED = "- Python", "- imports", "- weights packed", "- self-test"
ROWS = (PROCESS, PYTHON, IMPORTS, LOAD, PACKED, TESTED, FORM, WHOLE)
COLUMNS = (
    *(Column(name, ".2f") for name in SIMULATED),
    Column(MESH, ".2f", compared=False),
    Column(ALONE, ".2f", compared=False),
)


def measure(ground: Ground) -> Rows:
    """Simulated: nodes that follow those which scenario A takes, by model. A full run measures a
    real mesh of this machine, and parts of its starts, beside that."""
    plays = [
        Play(column, scenario_at(SCENARIOS / f"{name}.yaml", HORIZON_S))
        for column, name in SIMULATED.items()
    ]
    rows: Rows = {name: {} for name in ROWS}
    for column, (outcome, *_) in played(FOLDER.name, plays, ground).items():
        events = (
            Event(one.at_s, one.kind, one.node_id, one.pipeline_id) for one in outcome.happened
        )
        for name, seconds in medians(parts_of(events)).items():
            rows[name][column] = seconds
    if ground.size is Size.FULL:
        add_measured(rows)
    return {name: cells for name, cells in rows.items() if cells}


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


def add_measured(rows: Rows) -> None:
    """Of this machine as it is just now."""
    from experiments.starts import measured

    for name, seconds in medians(measured.on_a_mesh()).items():
        rows[name][MESH] = seconds
    python_s = measured.process_s("pass")
    packed_s, tested_s = measured.stage_s()
    rows[PYTHON][ALONE] = python_s
    rows[IMPORTS][ALONE] = measured.process_s("import services.engine.__main__") - python_s
    rows[PACKED][ALONE], rows[TESTED][ALONE] = packed_s, tested_s - packed_s


EXPERIMENT = Experiment(
    FOLDER.name,
    "Seconds between an order for a node and a pipeline that serves again",
    COLUMNS,
    measure,
    "70B, simulated s",
)
