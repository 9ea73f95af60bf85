from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.__main__ import EXPECTED, EXPERIMENTS, HERE, Experiment, differences
from simulator.fleet.scenario import read_scenario


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.folder)
def test_what_is_expected_is_of_the_rows_and_seeds_there_are(experiment: Experiment) -> None:
    folder: Path = HERE / experiment.folder
    rows = experiment.rows
    scenarios = {row.scenario: read_scenario(folder / f"{row.scenario}.yaml") for row in rows}
    expected = json.loads((folder / EXPECTED).read_text())
    assert list(expected) == [
        f"{row.scenario} {row.strategy} {seed}"
        for row in rows
        for seed in scenarios[row.scenario].document.seeds
    ]
    assert all(row.strategy in scenarios[row.scenario].document.strategies for row in rows)


def test_another_figure_is_a_difference_and_rounding_is_none() -> None:
    expected = {"a full 0": {"cost": 10.0}}
    assert differences(expected, {"a full 0": {"cost": 10.1}}) == []
    assert differences(expected, {"a full 0": {"cost": 11.0}}) == ["a full 0: cost is 11, not 10.0"]
    assert len(differences(expected, {"b full 0": {"cost": 10.0}})) == 1
