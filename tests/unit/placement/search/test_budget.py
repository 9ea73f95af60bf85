"""A search without a clock depends on nothing but its question, however busy the machine is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.placement.search import packing
from services.placement.search.budget import UNLIMITED, Part, SearchBudget, Unlimited, solver_s
from services.placement.search.planners import helix, shuntserve
from services.placement.search.problem import Objective, Problem


class Left:
    """A budget with so many seconds left."""

    def __init__(self, left_s: float) -> None:
        self._left_s = left_s

    def expired(self) -> bool:
        return self._left_s <= 0

    def remaining_s(self) -> float:
        return self._left_s


@pytest.mark.parametrize(
    ("budget", "limit_s"),
    [
        (Left(60.0), 3.0),
        (Left(1.0), 1.0),
        (Part(Left(4.0), 0.25), 1.0),
        (UNLIMITED, math.inf),
        (Part(Part(UNLIMITED, 0.5), 0.1), math.inf),
    ],
)
def test_a_solver_has_a_clock_where_its_search_has_one(
    budget: SearchBudget, limit_s: float
) -> None:
    assert solver_s(budget, 3.0) == limit_s


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each solve of whole numbers had at the most."""
    found, solver = list[float](), packing._solver

    def told(*asked: Any) -> Any:
        solved = solver(*asked)
        if len(asked) > 4:
            found.append(solved.getOptionValue("time_limit")[1])
        return solved

    monkeypatch.setattr(packing, "_solver", told)
    return found


@pytest.mark.parametrize(("budget", "limit_s"), [(Unlimited(), math.inf), (Left(60.0), 3.0)])
def test_no_solve_of_a_plan_without_a_clock_has_one(  # type: ignore[no-untyped-def]
    make_costs, paper_cluster, clocks: list[float], budget: SearchBudget, limit_s: float
) -> None:
    objective = Objective(budget_per_hour=9.0)
    assert shuntserve.plan(Problem(make_costs(), paper_cluster, objective), budget).pipelines
    assert clocks
    assert set(clocks) == {limit_s}


def test_a_solver_without_a_clock_ends_by_its_work(  # type: ignore[no-untyped-def]
    make_costs, paper_cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helix, "MOST_NODES", 1)
    problem = Problem(make_costs(), paper_cluster)
    first, second = (helix.plan(problem, UNLIMITED) for _ in range(2))
    assert not first.complete
    assert first == second
