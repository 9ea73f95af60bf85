"""Modules that are found by their name alone."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path


def test_no_module_of_the_simulations_tests_hides_a_package() -> None:
    simulation = Path(__file__).parents[1] / "simulation"
    assert str(simulation) in sys.path
    own = {path.stem for path in simulation.glob("*.py")}
    assert not own & {*packages_distributions(), *sys.stdlib_module_names}
