from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cost import FOLDER, SERVED, flowing, to_be_had, under
from experiments.supply import Change, of_instances
from simulator.fleet.scenario import read_scenario


def test_of_a_trace_of_instances_there_are_those_that_came_and_did_not_go(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("1000,add,a\n2000,add,b\n2000,add,c\n5000,remove,a\n9000,add,d\n")
    assert of_instances(path, first=2) == (Change(0.0, 3), Change(3.0, 2), Change(7.0, 3))


def test_what_is_to_be_had_is_the_cheapest_there_is_each_second() -> None:
    supply = {
        "zone-a": (Change(0.0, 9), Change(600.0, 4), Change(900.0, 0)),
        "zone-b": (Change(0.0, 0), Change(600.0, 3)),
    }
    scenario = under(flowing(read_scenario(FOLDER / "days.yaml"), 1000.0, supply), "trace", supply)
    assert scenario.document.horizon_s == 1000.0
    assert sum(count for _, count in scenario.initial) == SERVED
    firm, a, b = (offer.price_per_hour or 0.0 for offer in scenario.offers)
    whole = 1000 * 6 * firm
    paid = 600 * 6 * a + 300 * (4 * a + 2 * b) + 100 * (3 * b + 3 * firm)
    assert to_be_had(scenario, 6) == pytest.approx(1 - paid / whole)
    alone = replace(scenario, events=(), offers=scenario.offers[:1])
    assert to_be_had(alone, 6) == 0
