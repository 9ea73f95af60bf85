"""A scenario file is a market and a load; what is wrong with it is said by place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bench.scenario import read_scenario
from bench.strategies import SCENARIO
from services.common.errors import InvalidArgument
from services.controller.providers.market_file import read_market
from services.controller.settings import ControllerSettings


def test_its_market_is_what_a_mesh_is_started_with(tmp_path: Path) -> None:
    scenario = read_scenario(SCENARIO)
    path = tmp_path / "market.yaml"
    path.write_text(scenario.market)
    script = read_market(path, memory_bytes=1, device_type="cpu")
    assert (script.offers, script.events) == (scenario.offers, scenario.events)
    mesh = ControllerSettings(market_file=path, node_speeds=scenario.nodes)
    assert len(mesh.supply.initial_nodes) == 3


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    text = yaml.safe_load(SCENARIO.read_text())
    again, other = tmp_path / "again.yaml", tmp_path / "other.yaml"
    again.write_text(yaml.safe_dump(text))
    text["load"]["seed"] += 1
    other.write_text(yaml.safe_dump(text))
    asks = read_scenario(SCENARIO).asks
    assert read_scenario(again).asks == asks
    assert read_scenario(other).asks != asks
    assert all(a.at_s < b.at_s for a, b in pairwise(asks))
    assert asks[-1].at_s <= text["load"]["for_s"]
    assert {ask.seed is None for ask in asks} == {True, False}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("nodes", "fast", "nodes: "),
        ("nodes", "7", "no offer has the relative_speed 7"),
        ("load.for_s", 0, "load.for_s: "),
        ("load.arrivals_per_s", 1e9, "load.arrivals_per_s: "),
        ("load.output_tokens", [9, 3], "load: .*output_tokens goes from 9 to 3"),
        ("load.prompt_words", [0, 3], "load.prompt_words.0: "),
        ("load.within_s", float("nan"), "load.within_s: "),
        ("load.speed", 3, "load.speed: "),
        ("events.0.offer", "nobody", "events.0.offer: no offer is called nobody"),
    ],
)
def test_bad_input_is_refused_by_place(
    tmp_path: Path, place: str, value: object, told: str
) -> None:
    document = yaml.safe_load(SCENARIO.read_text())
    at, *path = document, *place.split(".")
    for step in path[:-1]:
        at = at[int(step)] if step.isdigit() else at[step]
    at[path[-1]] = value
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidArgument, match=told):
        read_scenario(file)
