from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.experiment import BEGIN, END, EXPECTED, README, Experiment, Ground, Size
from experiments.registry import EXPERIMENTS
from experiments.table import Column, Rows, differences, rounded

PUBLIC_ONLY = frozenset({"estimator"})
"""All of their rows come from public data, which is not part of the repository."""


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.folder)
def test_a_tiny_run_gives_the_table_that_is_checked_in(experiment: Experiment) -> None:
    rows = rounded(experiment.measure(Ground(Size.TINY)))
    assert bool(rows) == (experiment.folder not in PUBLIC_ONLY)
    expected = experiment.expected()[Size.TINY]
    assert differences(experiment.columns, expected, rows) == [], "make experiments-tables"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.folder)
def test_a_readme_shows_the_table_that_is_checked_in(experiment: Experiment) -> None:
    assert experiment.page_table() in (experiment.path / README).read_text()
    names = {column.name for column in experiment.columns}
    rows = [row for by_row in experiment.expected().values() for row in by_row.values()]
    assert rows
    assert all(set(row) <= names for row in rows)
    assert experiment.bars in names


def test_every_folder_is_run() -> None:
    here = Path(EXPERIMENTS[0].path).parent
    folders = {path.parent.name for path in here.glob(f"*/{EXPECTED}")}
    assert folders == {one.folder for one in EXPERIMENTS}


def test_the_same_run_gives_the_same_bytes() -> None:
    experiment = next(one for one in EXPERIMENTS if one.folder == "placement")
    one, again = (json.dumps(experiment.measure(Ground(Size.TINY))) for _ in range(2))
    assert one == again


def test_who_writes_the_tables_measures_a_machine_only_when_asked(tmp_path: Path) -> None:
    columns = (Column("cost"), Column("seconds", measured=True))
    experiment = Experiment(str(tmp_path), "", columns, lambda _: {}, "cost")
    (tmp_path / README).write_text(f"Asked.\n{BEGIN}{END}\nVerdict.\n")
    rows: Rows = {"a": {"cost": 1.0, "seconds": 2.0}}
    experiment.write(Size.QUICK, rows)
    assert experiment.expected() == {"quick": {"a": {"cost": 1.0}}}
    experiment.write(Size.QUICK, rows, measured=True)
    experiment.write(Size.QUICK, {"a": {"cost": 3.0, "seconds": 4.0}})
    assert experiment.expected() == {"quick": {"a": {"cost": 3.0, "seconds": 2.0}}}
    told = (tmp_path / README).read_text()
    assert told == f"Asked.\n{experiment.page_table()}\nVerdict.\n"
    assert "| a | 3 | 2 |" in told
