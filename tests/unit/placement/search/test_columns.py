"""Bounds of multisets: over every last stage, and whatever the nodes cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.placement_clusters import cluster
from services.placement.estimate.cluster import Workload
from services.placement.search.bounds import rate_bounds, terms
from services.placement.search.field import SearchField, field
from services.placement.search.problem import Problem
from tests.unit.placement.conftest import MakeCosts

TYPES = ["g4dn.xlarge", "g5.xlarge", "g6.12xlarge", "g6e.xlarge"]


def ground_of(make_costs: MakeCosts, *, twins: bool) -> SearchField:
    """Types at one price each, or at two."""
    nodes = cluster(dict.fromkeys(TYPES, 2))
    if twins:
        cheap = [
            replace(
                node,
                node_id=f"{node.node_id}-spot",
                kind=replace(node.kind, price_per_hour=0.1, pool="spot", spot=True),
            )
            for node in nodes
        ]
        nodes = (*nodes, *cheap)
    costs = make_costs("qwen3-32b", "measured", Workload(500, 40))
    return field(Problem(costs, nodes), by_price=True)


def test_a_bound_is_the_best_over_every_last_stage(make_costs: MakeCosts) -> None:
    columns = ground_of(make_costs, twins=True).columns
    random = np.random.default_rng(1)
    for stages in (1, 2, 5):
        rows = np.sort(random.integers(0, len(columns.options), (40, stages)), axis=1)
        table = columns.tables.of(stages)
        at = np.broadcast_to(np.arange(len(table.batches)), (1, len(table.batches)))
        expected = []
        for row in rows:
            tails = [np.append(np.delete(row, i), row[i])[None] for i in range(stages)]
            each = [
                rate_bounds(table, terms(table, t, at, ordered=False), at, close=True)
                for t in tails
            ]
            expected.append(max(float(rates.max()) for rates in each))
        np.testing.assert_allclose(columns.sure_bounds(rows, dense=True), expected, rtol=1e-12)


def test_what_nodes_cost_changes_no_bound_and_no_guide(make_costs: MakeCosts) -> None:
    plain, twins = (ground_of(make_costs, twins=twins).columns for twins in (False, True))
    speeds = [(option.cost.kind.performance, option.tp) for option in plain.options]
    like = np.array([speeds.index((o.cost.kind.performance, o.tp)) for o in twins.options])
    assert len(like) == 2 * len(speeds)
    random = np.random.default_rng(2)
    rows = np.sort(random.integers(0, len(like), (60, 4)), axis=1)
    same = like[rows]
    np.testing.assert_array_equal(twins.guides(rows), plain.guides(same))
    for every_tail in (True, False):
        np.testing.assert_array_equal(
            twins.bounds(rows, every_tail=every_tail), plain.bounds(same, every_tail=every_tail)
        )
