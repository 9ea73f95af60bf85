from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.ec2.files import TYPES
from services.cli.ec2.purchase import Purchase, Wish, purchase
from services.cli.mesh_directory import MeshError
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.hazards import Hazards
from services.controller.providers.ec2.offers import Pool, Region, offers_of
from services.controller.providers.ec2.table import read_table
from services.placement.estimate.cluster import Workload
from services.placement.estimate.model import load_model
from services.placement.search.budget import UNLIMITED
from services.placement.search.problem import Objective, ObjectiveKind

TABLE = read_table(TYPES)
ZONES = ("z-1", "z-2")
MODEL = load_model("qwen3-32b")
PRICES = {
    Pool("g6e.xlarge", "z-1"): 0.8,
    Pool("g6e.xlarge", "z-2"): 0.7,
    Pool("g5.12xlarge", "z-1"): 2.4,
}


def offers() -> tuple[Offer, ...]:
    pools = frozenset(Pool(name, zone) for name in TABLE.types for zone in ZONES)
    return offers_of(TABLE, Region({z: z for z in ZONES}, pools, PRICES), Hazards())


def bought(
    counts: dict[str, int] | None = None,
    *,
    budget: float = 0.0,
    most: float = 100.0,
    kind: ObjectiveKind = ObjectiveKind.THROUGHPUT,
    instances: int = 20,
) -> Purchase:
    wish = Wish(Objective(kind, budget_per_hour=budget), Workload(), instances, most, counts)
    return purchase(MODEL, TABLE, offers(), wish, UNLIMITED)


def test_what_is_counted_is_bought_where_it_is_cheapest() -> None:
    found = bought({"g6e.xlarge": 10})
    assert {offer.offer_id: count for offer, count in found.bought} == {
        "g6e.xlarge/z-2/spot": 8,
        "g6e.xlarge/z-1/spot": 2,
    }
    assert found.cost_per_hour == pytest.approx(8 * 0.7 + 2 * 0.8)
    assert found.on_demand_per_hour == pytest.approx(10 * 1.861)
    assert found.first_nodes == "g6e.xlarge:10"
    stages = [stage for p in found.plan["pipelines"] for stage in p["stages"]]
    assert {stage["instance_type"] for stage in stages} == {"g6e.xlarge"}
    assert found.plan["throughput_rps"] > 0


def test_what_is_not_counted_is_the_planners_choice_within_the_budget() -> None:
    found = bought(budget=5.0)
    assert 0 < found.cost_per_hour <= 5.0
    nodes = {stage["node"] for p in found.plan["pipelines"] for stage in p["stages"]}
    assert found.count == len(nodes)


def test_the_planner_takes_no_more_nodes_than_there_may_be() -> None:
    found = bought(budget=8.0, instances=5)
    assert found.count <= 5


@pytest.mark.parametrize(
    ("counts", "budget", "most", "says"),
    [
        ({"g6e.xlarge": 4}, 0.0, 5.0, "--max-dollars-per-hour is 5"),
        ({"g6e.xlarge": 4}, 2.0, 50.0, "--budget-per-hour is 2"),
        ({"g6e.xlarge": 99}, 0.0, 1e4, "99 of g6e.xlarge are wanted, and 32 are to be had"),
        ({"g6e.xlarge": 1}, 0.0, 50.0, "GiB short"),
    ],
)
def test_what_cannot_be_bought_or_holds_no_model_is_told(
    counts: dict[str, int], budget: float, most: float, says: str
) -> None:
    with pytest.raises(MeshError, match=says):
        bought(counts, budget=budget, most=most, instances=100)


def test_nodes_that_cannot_compute_the_model_hold_none_of_it() -> None:
    wish = Wish(Objective(), Workload(), 20, 100.0, {"g6e.xlarge": 6})
    other = replace(MODEL, backends=frozenset({"another"}))
    with pytest.raises(MeshError, match="there is no plan"):
        purchase(other, TABLE, offers(), wish, UNLIMITED)


def test_the_types_that_come_with_the_commands_can_be_read() -> None:
    assert isinstance(TYPES, Path)
    assert set(TABLE.types) == {"g5.12xlarge", "g6.12xlarge", "g6e.xlarge"}
