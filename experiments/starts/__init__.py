"""Where the time goes between an order for a node and a pipeline that serves again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from experiments.experiment import Experiment, Ground
from experiments.fleets import Play, played, scenario_at
from experiments.starts.parts import Event, Parts, parts_of
from experiments.table import Cell, Column, Rows

FOLDER = Path(__file__).parent
SCENARIOS = FOLDER.parent / "spot_tolerance"
SIMULATED = {"70B, simulated s": "scenario-a", "32B, simulated s": "32b-scenario-a"}
HORIZON_S = 600.0
"""Nodes are taken at 300 s, and those that follow them serve before its end."""
PROCESS, LOAD, FORM, WHOLE = (
    "order to registered",
    "registered to loaded",
    "loaded to serving",
    "whole",
)
ROWS = (PROCESS, LOAD, FORM, WHOLE)
COLUMNS = tuple(Column(name, ".2f") for name in SIMULATED)


def measure(ground: Ground) -> Rows:
    """Nodes that follow those which scenario A takes, by model."""
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
    return rows


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
