"""The replanner in markets: no flapping, no sleeping, never above the budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from bench.markets import GOAL, MODEL, TYPES, outcome
from services.controller.core.cluster.replanning import ReplanSettings
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import PlacedPipeline, Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.model import load_model
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind
from simulator.fleet.market import Kind, MarketSettings, Moment, random_market
from simulator.fleet.replay import Replay

MARKETS = 4
HOURS = 1.0
SETTINGS = ReplanSettings()


def replay(
    moments: Sequence[Moment], length_s: float, objective: Objective
) -> tuple[Replay, list[tuple[float, Sequence[PlacedPipeline]]]]:
    catalogue = load_catalogue()
    costs = Costs(load_model(MODEL), Workload(), load_calibration("measured"), catalogue)
    found = Replay(
        costs, catalogue, moments, length_s, objective, shuntserve.plan, SETTINGS, 1800.0
    )
    plans: list[tuple[float, Sequence[PlacedPipeline]]] = []
    found.watch = lambda now_s, plan: plans.append((now_s, plan))
    found.run()
    return found, plans


def drawn(seed: int) -> tuple[Moment, ...]:
    catalogue = load_catalogue()
    kinds = [Kind(name, catalogue.instance(name).price_per_hour) for name in TYPES]
    return random_market(Random(seed), kinds, MarketSettings(length_s=HOURS * 3600))


@pytest.mark.timeout(600)
def test_little_is_lost_against_one_that_knows_the_market_ahead() -> None:
    found = [outcome(1000 + seed, HOURS * 3600) for seed in range(MARKETS)]
    lost = statistics.median(one.lost for one in found)
    dearer = statistics.median(one.dearer for one in found)
    print(f"\n{MARKETS} markets: {lost:.1%} of the requests lost, {dearer:.1%} dearer (median)")
    assert lost <= GOAL
    assert dearer <= GOAL
    for one in found:
        assert one.changes <= 2 * one.moments, "it flaps"


def test_prices_that_flap_move_nothing() -> None:
    calm = drawn(1)[0]
    offers = tuple(replace(offer, count=4) for offer in calm.offers)
    moments = [replace(calm, offers=offers)]
    for turn in range(1, 60):
        factor = 0.5 if turn % 2 else 1.0
        changed = tuple(
            replace(o, price_per_hour=(o.price_per_hour or 0) * factor) if o.spot else o
            for o in offers
        )
        moments.append(replace(calm, at_s=20.0 * turn, offers=changed))
    found, plans = replay(moments, 1200.0, Objective(ObjectiveKind.THROUGHPUT_PER_COST))
    assert found.bill.requests > 0
    assert len(plans) <= 1 + 1200.0 / SETTINGS.cool_down_s / 4, "it follows a market that flaps"


@pytest.mark.parametrize("seed", range(2))
def test_no_plan_is_dearer_than_the_budget(seed: int) -> None:
    budget = 4.0
    objective = Objective(budget_per_hour=budget)
    _, plans = replay(drawn(seed), HOURS * 3600, objective)
    assert plans
    for _, plan in plans:
        assert sum(pipeline.cost_per_hour for pipeline in plan) <= budget * (1 + 1e-9)
