"""Costs and clusters for the placement tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.placement_clusters import PAPER, PAPER_PRICES, cluster
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import CandidateNode, Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.model import ModelShape, load_model

MakeCosts = Callable[..., Costs]


@pytest.fixture
def make_costs() -> MakeCosts:
    def make(
        model: str | ModelShape = "llama-3.1-70b",
        calibration: str = "nominal",
        workload: Workload | None = None,
    ) -> Costs:
        shape = load_model(model) if isinstance(model, str) else model
        return Costs(shape, workload or Workload(), load_calibration(calibration), load_catalogue())

    return make


@pytest.fixture
def paper_cluster() -> tuple[CandidateNode, ...]:
    return cluster(PAPER, PAPER_PRICES)
