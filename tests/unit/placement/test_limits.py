"""Planners keep their time limit, and refuse an objective that they would ignore."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from bench.placement_clusters import cluster
from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode
from services.placement.estimate.costs import StageCost
from services.placement.search import columns, splits
from services.placement.search.budget import UNLIMITED
from services.placement.search.problem import Objective, ObjectiveKind, Problem
from services.placement.search.registry import NAMES, planner
from tests.unit.placement.conftest import MakeCosts


class Counted:
    """A budget that is over after some looks, and counts what is done from then on."""

    def __init__(self, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks, self.over = looks, False
        self.timed = self.split = 0
        decode, best_split = StageCost.decode_layer_s, splits.best_split

        def counted_decode(cost: StageCost, b: Any) -> Any:
            self.timed += self.over
            return decode(cost, b)

        def counted_split(*arguments: Any) -> Any:
            self.split += self.over
            return best_split(*arguments)

        monkeypatch.setattr(StageCost, "decode_layer_s", counted_decode)
        monkeypatch.setattr(columns, "best_split", counted_split)

    def expired(self) -> bool:
        self.looks -= 1
        self.over = self.looks < 0
        return self.over

    def remaining_s(self) -> float:
        return 0.05


def of_distinct_speeds(count: int) -> tuple[CandidateNode, ...]:
    nodes = cluster({"g6.xlarge": count // 2, "g5.xlarge": count - count // 2})
    return tuple(
        replace(node, kind=replace(node.kind, speed=1 - i * 1e-4)) for i, node in enumerate(nodes)
    )


def of_distinct_networks(count: int) -> tuple[CandidateNode, ...]:
    def changed(node: CandidateNode, factor: float) -> CandidateNode:
        kind = replace(
            node.kind,
            speed=2 - factor,
            network_gbps=node.kind.network_gbps * factor,
            burst_gbps=node.kind.burst_gbps * factor,
        )
        return replace(node, kind=kind)

    nodes = cluster({"g6.12xlarge": count})
    return tuple(changed(node, 1 + i * 0.1) for i, node in enumerate(nodes))


TABULATED = ("shuntserve", "hexgen", "alpaserve", "thunderserve")
PLAIN = ("proportional", "vllm", "spotserve")


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        *((name, 20) for name in PLAIN + TABULATED),
        *((name, 520) for name in TABULATED),  # while times are tabulated
        ("shuntserve", 1010),  # soon after
    ],
)
def test_five_hundred_different_nodes_are_not_set_up_after_time_is_out(
    make_costs: MakeCosts, monkeypatch: pytest.MonkeyPatch, name: str, looks: int
) -> None:
    problem = Problem(make_costs(), of_distinct_speeds(500))
    budget = Counted(looks, monkeypatch)
    with suppress(DeadlineExceeded, FailedPrecondition):
        solution = planner(name)(problem, budget)
        assert not solution.complete or name == "proportional"
    # the plain planner asks each class for its speed once, and one estimate asks each stage
    assert budget.timed <= 3 * 500
    assert budget.split <= 12


def test_shuntserve_has_a_plan_of_five_hundred_nodes_whenever_time_is_out(
    make_costs: MakeCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(make_costs(), of_distinct_speeds(500))
    for looks in (0, 510):
        solution = planner("shuntserve")(problem, Counted(looks, monkeypatch))
        assert len(solution.pipelines) > 30
        assert not solution.complete
    priced = replace(problem, objective=Objective(budget_per_hour=5.0))
    with pytest.raises(DeadlineExceeded):  # the plain planner would not keep the budget
        planner("shuntserve")(priced, Counted(0, monkeypatch))


@pytest.mark.parametrize("looks", [30, 400])
@pytest.mark.parametrize("name", ["exact", "shuntserve", "hexgen", "thunderserve"])
def test_seven_different_networks_are_not_permuted_after_time_is_out(
    make_costs: MakeCosts, monkeypatch: pytest.MonkeyPatch, name: str, looks: int
) -> None:
    problem = Problem(make_costs(), of_distinct_networks(7))
    budget = Counted(looks, monkeypatch)
    with suppress(DeadlineExceeded):
        solution = planner(name)(problem, budget)
        if budget.over:
            assert not solution.complete
            assert solution.upper_bound_rps is None
    assert budget.split <= 30


ASKED: dict[str, Any] = {
    "objective": ObjectiveKind.THROUGHPUT_PER_COST,
    "budget_per_hour": 40.0,
    "ttft_target_s": 5.0,
    "tpot_target_s": 0.2,
    "uniform_tp": True,
    "min_on_demand_share": 0.5,
}


@pytest.mark.parametrize("field", ASKED)
@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_heeded_or_refused_by_field(
    make_costs: MakeCosts, name: str, field: str
) -> None:
    objective = Objective(**{"kind" if field == "objective" else field: ASKED[field]})
    costs = make_costs("qwen3-32b", "measured")
    problem = Problem(costs, cluster({"g6.12xlarge": 4}), objective)
    heeds = name == "shuntserve" or (field == "uniform_tp" and name in ("vllm", "spotserve"))
    if not heeds:
        with pytest.raises(InvalidArgument) as refused:
            planner(name)(problem, UNLIMITED)
        assert refused.value.field == field
        assert field in refused.value.message
        return
    solution = planner(name)(problem, UNLIMITED)
    if field == "uniform_tp":
        assert len({stage.tp for p in solution.pipelines for stage in p.stages}) == 1
    if field == "budget_per_hour":
        spent = sum(s.node.kind.price_per_hour for p in solution.pipelines for s in p.stages)
        assert 0 < spent <= 40


@pytest.mark.parametrize("name", NAMES)
def test_what_binds_no_plan_is_refused_by_nobody(make_costs: MakeCosts, name: str) -> None:
    objective = Objective(allow_phase_split=True, recovery_s=60.0)
    problem = Problem(make_costs("qwen3-32b"), cluster({"g6.12xlarge": 3}), objective)
    assert planner(name)(problem, UNLIMITED).pipelines
