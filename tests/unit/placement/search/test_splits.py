"""The best split is the best of all splits."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from bench.placement_clusters import cluster
from services.common.errors import FailedPrecondition
from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline, PlacedStage, Workload
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.estimate.model import ModelShape
from services.placement.search.field import field
from services.placement.search.problem import Problem
from services.placement.search.splits import best_split

SMALL = ModelShape("small", 2048, 32, 8, 64, 8192, 32000, 9)
TYPES = ["g4dn.xlarge", "g5.xlarge", "g6e.xlarge"]


def best_by_trial(costs, nodes, phase):
    best = 0.0
    for cuts in product(range(1, SMALL.layers), repeat=len(nodes) - 1):
        ends = [0, *cuts, SMALL.layers]
        if all(a < b for a, b in pairwise(ends)):
            stages = [
                PlacedStage(n, a, b, 1) for n, a, b in zip(nodes, ends, ends[1:], strict=False)
            ]
            try:
                got = estimate_pipeline(costs, PlacedPipeline(tuple(stages), phase))
            except FailedPrecondition:
                continue
            best = max(best, got.throughput_rps)
    return best


@pytest.mark.parametrize("phase", list(PipelinePhase))
@pytest.mark.parametrize("calibration", ["nominal", "measured"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2), (2,)])
def test_the_best_split_is_the_best_of_all(make_costs, order, calibration, phase):
    costs = make_costs(SMALL, calibration, Workload(500, 40))
    nodes = cluster({TYPES[i]: 1 for i in order})
    ground = field(Problem(costs, nodes), phase=phase, tolerance=1e-9)
    kinds = [group[0].kind.type_name for group in ground.stock.nodes]
    found = ground.columns.best_of({tuple(kinds.index(node.kind.type_name) for node in nodes)})
    assert found is not None
    expected = best_by_trial(costs, nodes, phase)
    assert found.split.rate_rps == pytest.approx(expected, rel=1e-6)
    built = ground.build([found], phase)[0]
    assert estimate_pipeline(costs, built).throughput_rps == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("phase", list(PipelinePhase))
@pytest.mark.parametrize("tolerance", [1e-9, 2e-4])
def test_orders_looked_at_together_give_the_best_of_each_alone(make_costs, phase, tolerance):
    costs = make_costs(SMALL, "measured", Workload(500, 40))
    ground = field(Problem(costs, cluster(dict.fromkeys(TYPES, 2))), phase=phase)
    table = ground.columns.tables.of(4)
    orders = np.array(sorted(set(permutations((0, 0, 1, 2)))))
    alone = [best_split(table, orders[i : i + 1], tolerance=tolerance) for i in range(len(orders))]
    rates = [found[1].rate_rps if found else 0.0 for found in alone]
    found = best_split(table, orders, tolerance=tolerance)
    assert found is not None
    row, split = found
    assert split.rate_rps == pytest.approx(max(rates), rel=2 * tolerance)
    assert split.rate_rps == pytest.approx(rates[row], rel=2 * tolerance)
    assert best_split(table, orders, split.rate_rps, tolerance) is None
    again = best_split(table, orders, split.rate_rps * (1 - 1e-3), tolerance)
    assert again is not None
    assert again[1].rate_rps == pytest.approx(max(rates), rel=2 * tolerance)


def test_no_pipeline_beats_its_sure_bound(make_costs):
    costs = make_costs(SMALL, "measured", Workload(500, 40))
    ground = field(Problem(costs, cluster(dict.fromkeys(TYPES, 2))), tolerance=1e-9)
    for members in [(0, 1, 2), (0, 0, 1), (1, 1, 2, 2), (0,), (2, 2)]:
        rows = np.asarray([members])
        found = ground.columns.solve_exactly(members)
        assert found is not None
        close = ground.columns.sure_bounds(rows, dense=True)[0]
        coarse = ground.columns.sure_bounds(rows, dense=False)[0]
        assert found.split.rate_rps <= close * (1 + 1e-6) <= coarse * (1 + 2e-6)
        assert close <= found.split.rate_rps * 1.5
