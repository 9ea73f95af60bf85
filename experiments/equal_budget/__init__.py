"""The same money an hour on one instance of eight A100, or on a mix of smaller GPUs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Plan, Play, beginning_with, mean, played, scenario_at
from experiments.table import Cell, Column, Rows
from services.placement.estimate.estimator import estimate_plan
from services.placement.search.budget import UNLIMITED
from services.placement.search.planners import shuntserve, thunderserve
from services.placement.search.problem import Objective, Problem
from simulator.fleet.scenario import Scenario

FOLDER = Path(__file__).parent
BUDGET = 21.96
"""Dollars an hour: one p4d.24xlarge."""
WORKLOADS = {
    Size.TINY: ("code",),
    Size.QUICK: ("conversation", "code"),
    Size.FULL: ("conversation", "code"),
}
HORIZON_S = {Size.TINY: 20.0, Size.QUICK: 600.0, Size.FULL: 1800.0}
ALONE = "a100"
SPOT = {"g5": 2.29, "g6": 1.94, "g6e": 0.70}
"""Prices of the evaluation of FGCS 186, 108760."""
EIGHT, MIX, SPOT_MIX = "eight A100", "mix on demand", "mix on spot"
GROUNDS = {
    Size.TINY: (EIGHT, MIX),
    Size.QUICK: (EIGHT, MIX, SPOT_MIX),
    Size.FULL: (EIGHT, MIX, SPOT_MIX),
}
COLUMNS = (
    Column("promised req/s", ".3f"),
    Column("served req/s", ".3f"),
    Column("served / A100", ".2f"),
    Column("TPOT p50 s", ".3f"),
    Column("$/h", ".2f"),
    Column("nodes"),
)


def offered(scenario: Scenario, what: str) -> Scenario:
    """The A100 instance alone; all but that; or what is offered on spot, as many of each as the
    budget alone allows."""
    if what == SPOT_MIX:
        offers = tuple(
            replace(one, price_per_hour=price, count=int(BUDGET / price), spot=True)
            for one in scenario.offers
            if (price := SPOT.get(one.offer_id)) is not None
        )
    else:
        offers = tuple(one for one in scenario.offers if (one.offer_id == ALONE) == (what == EIGHT))
    return replace(scenario, offers=offers)


def planned(scenario: Scenario) -> Plan:
    """Ours, of all that is offered, within the budget."""
    nodes = tuple(
        scenario.node(f"{offer.offer_id}/{number}", offer)
        for offer in scenario.offers
        for number in range(offer.count)
    )
    problem = Problem(scenario.costs, nodes, Objective(budget_per_hour=BUDGET))
    return shuntserve.plan(problem, UNLIMITED).pipelines


def served_by(row: str, scenario: Scenario, plan: Plan) -> Play:
    """The plan on the nodes that it uses, and no others."""
    used = Counter(name.split("/")[0] for pipeline in plan for name in pipeline.node_ids)
    offers = tuple(replace(o, count=used[o.offer_id]) for o in scenario.offers if used[o.offer_id])
    initial = tuple((offer, offer.count) for offer in offers)
    return Play(row, beginning_with(replace(scenario, offers=offers, initial=initial), plan))


def measure(ground: Ground) -> Rows:
    """Served rates beside that of the A100s."""
    rows: Rows = {}
    plays = list[Play]()
    for name in WORKLOADS[ground.size]:
        scenario = scenario_at(FOLDER / f"{name}.yaml", HORIZON_S[ground.size])
        for what in GROUNDS[ground.size]:
            there = offered(scenario, what)
            plan, row = planned(there), f"{name}: {what}"
            plays.append(served_by(row, there, plan))
            rows[row] = told(there, plan)
            if what == MIX:
                split = split_by_phase(there, plan)
                rows[f"{row}, phases apart"] = told(there, split)
    for row, group in played(FOLDER.name, plays, ground).items():
        rows[row] |= {
            "served req/s": mean(group, "throughput_rps"),
            "TPOT p50 s": mean(group, "tpot_s", "p50"),
        }
    for row in [play.row for play in plays]:
        mine, base = (rows[one]["served req/s"] for one in (row, f"{row.split(':')[0]}: {EIGHT}"))
        if isinstance(mine, float) and isinstance(base, float) and base:
            rows[row]["served / A100"] = mine / base
    return rows


def split_by_phase(scenario: Scenario, plan: Plan) -> Plan:
    """ThunderServe's search over the nodes that a plan uses, with phases."""
    nodes = tuple(stage.node for pipeline in plan for stage in pipeline.stages)
    problem = Problem(scenario.costs, nodes, Objective(allow_phase_split=True))
    return thunderserve.plan(problem, UNLIMITED).pipelines


def told(scenario: Scenario, plan: Plan) -> dict[str, Cell]:
    """What the estimator promises of it, what it costs, and of what it is."""
    used = Counter(name.split("/")[0] for pipeline in plan for name in pipeline.node_ids)
    phases = Counter(pipeline.phase.value for pipeline in plan)
    nodes = ", ".join(f"{count} {name}" for name, count in sorted(used.items()))
    pipelines = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
    return {
        "promised req/s": estimate_plan(scenario.costs, plan)[0].throughput_rps,
        "$/h": sum(pipeline.cost_per_hour for pipeline in plan),
        "nodes": f"{nodes}; pipelines: {pipelines}",
    }


EXPERIMENT = Experiment(
    FOLDER.name,
    "32B at $21.96 an hour: eight A100, or a mix",
    COLUMNS,
    measure,
    "served req/s",
)
