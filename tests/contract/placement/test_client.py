"""A plan from a server is the same plain data as one made here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench.placement_clusters import PAPER, PAPER_PRICES, cluster
from services.placement.cli import solved
from services.placement.command.client import solve_on
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.model import load_model
from services.placement.search.problem import Objective, Problem


@pytest.mark.parametrize(
    ("planner", "split", "rate"),
    [("shuntserve", False, 0.0), ("vllm", False, 1e6), ("thunderserve", True, 0.0)],
)
async def test_a_plan_from_a_server_is_the_plan_made_here(
    address: str, planner: str, split: bool, rate: float
) -> None:
    model, workload = "qwen3-32b", Workload(arrival_rate_rps=rate)
    nodes, objective = cluster(PAPER, PAPER_PRICES), Objective(allow_phase_split=split)
    costs = Costs(load_model(model), workload, load_calibration("measured"), load_catalogue())
    here = solved(Problem(costs, nodes, objective), planner, 60.0)
    there: dict[str, Any] = await asyncio.to_thread(
        solve_on, address, model, nodes, workload, objective, planner, "measured", 0, 60.0
    )
    for data in (here, there):
        del data["solve_time_s"]
    assert there == here
