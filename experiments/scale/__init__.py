"""How decisions and the simulation grow with the number of nodes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.placement import costs_of
from bench.placement_clusters import cluster
from bench.scenario import read_scenario as read_mesh
from bench.strategies_simulated import simulated
from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import scenario_at
from experiments.supply import drawn, events
from experiments.table import Cell, Column, Rows
from services.controller.core.cluster.market import Offer
from services.controller.providers.market_file import MarketEvent
from services.placement.estimate.estimator import estimate_plan
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.search.budget import UNLIMITED, Unlimited
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Problem
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import FlowRow, RateRow, Scenario, WorkloadRow, read_scenario
from simulator.fleet.workload import Generator

FOLDER = Path(__file__).parent
TYPES = ("g4dn.12xlarge", "g5.xlarge", "g5.12xlarge", "g6.xlarge", "g6.12xlarge", "g6e.xlarge")
MODEL = "llama-3.1-70b"
ZONES = 4
NOTICE_S = 120.0
CALM_S = 1800.0
"""Of a zone, between two changes."""
COLUMNS = (
    Column("planned req/s", ".4g"),
    Column("first plan s", ".2f", measured=True),
    Column("next plan s", ".2f", measured=True),
    Column("finished", ".0f"),
    Column("running", ".0f"),
    Column("taken", ".0f"),
    Column("TPOT p50 s", ".3f"),
    Column("start s", ".2f", measured=True),
    Column("CPU s", ".1f", measured=True),
    Column("simulated s / s", ".3g", measured=True),
    Column("peak MiB", ".0f", measured=True),
)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Scale:
    """One row."""

    nodes: int
    rate_rps: float
    horizon_s: float

    @property
    def name(self) -> str:
        return f"{self.nodes} nodes, {self.rate_rps:g} req/s"


@dataclass(frozen=True, slots=True)
class Day:
    """The row of a flow: as many nodes at first, in zones that come and go."""

    nodes: int
    rate_rps: float
    horizon_s: float

    @property
    def name(self) -> str:
        hours = self.horizon_s / 3600
        return f"{self.nodes} nodes, {self.rate_rps:g} req/s, {hours:g} h as a flow"


DAYS = {
    Size.TINY: Day(24, 200, 900.0),
    Size.QUICK: Day(120, 1000, 7200.0),
    Size.FULL: Day(1200, 10_000, 86_400.0),
}
EVERY_ID_S = {Size.TINY: 30.0, Size.QUICK: 600.0, Size.FULL: 3600.0}
"""Of the local mesh."""
SCALES = {
    Size.TINY: (Scale(10, 10, 10.0),),
    Size.QUICK: (Scale(10, 10, 60.0), Scale(100, 100, 20.0)),
    Size.FULL: (Scale(10, 10, 60.0), Scale(100, 100, 60.0), Scale(1000, 1000, 20.0)),
}


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and seconds of this process."""
    began_s = time.process_time()
    return work(), time.process_time() - began_s


def sized(scenario: Scenario, scale: Scale) -> Scenario:
    """As many nodes and requests a second."""
    (offer, _) = scenario.initial[0]
    document = scenario.document
    assert document.workload.generator is not None
    told = Generator(**document.workload.generator.model_dump())
    count = round(2 * scale.rate_rps * scale.horizon_s) + 100
    generator = document.workload.generator.model_copy(
        update={"rate_rps": scale.rate_rps, "requests": min(count, told.requests)}
    )
    workload = document.workload.model_copy(update={"generator": generator})
    return replace(
        scenario,
        initial=((offer, scale.nodes),),
        document=document.model_copy(update={"workload": workload}),
    )


def in_zones(scenario: Scenario, day: Day) -> Scenario:
    """As a flow, on spot nodes in zones of which each loses up to a fifth and has them back."""
    (firm, _), most = scenario.initial[0], day.nodes // ZONES
    least, calm_s = most - most // 5, min(CALM_S, day.horizon_s / 4)
    zones, happens = list[Offer](), list[MarketEvent]()
    for number in range(ZONES):
        name = f"zone-{number}"
        zones.append(replace(firm, offer_id=name, pool=name, spot=True, count=most))
        supply = drawn(name, length_s=day.horizon_s, least=least, most=most, calm_s=calm_s)
        happens += events(name, supply, NOTICE_S)
    happens.sort(key=lambda event: event.at_s)
    drawn_from = scenario.document.workload.generator
    assert drawn_from is not None
    flow = FlowRow(
        rates=(RateRow(at_s=0.0, rps=day.rate_rps),),
        input_mean=drawn_from.input_mean,
        output_mean=drawn_from.output_mean,
    )
    changed = {
        "workload": WorkloadRow(flow=flow),
        "horizon_s": day.horizon_s,
        "replans": True,
        "nodes_max": day.nodes,
    }
    return replace(
        scenario,
        offers=(firm, *zones),
        events=tuple(happens),
        initial=tuple((zone, most) for zone in zones),
        document=scenario.document.model_copy(update=changed),
    )


def as_flow(day: Day) -> dict[str, Cell]:
    """Time at first, until all nodes serve, is told apart."""
    run = FleetRun(in_zones(read_scenario(FOLDER / "nodes.yaml"), day), "full", 0)
    began_s, starts = time.process_time(), list[float]()
    outcome = run.outcome(lambda share: starts.append(time.process_time() - began_s))
    took_s = time.process_time() - began_s
    return {
        "finished": float(outcome.counts.finished),
        "running": float(outcome.running),
        "taken": float(sum(one.nodes for one in outcome.interruptions)),
        "TPOT p50 s": outcome.tpot_s["p50"],
        "start s": starts[0],
        "simulated s / s": day.horizon_s / took_s,
        "CPU s": took_s,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def every_id(length_s: float) -> tuple[str, dict[str, Cell]]:
    """A local mesh whose ids are drawn one by one, until all answers are there; and its name."""
    scenario = read_mesh(FOLDER / "local-mesh.yaml")
    asks = tuple(ask for ask in scenario.asks if ask.at_s <= length_s)
    scenario = replace(scenario, asks=asks)
    (figures, _), took_s = timed(partial(simulated, scenario, "full"))
    taken = sum(event.take for event in scenario.events if event.at_s <= length_s)
    return f"4 nodes of a local mesh, {length_s / 60:g} min with every id", {
        "finished": float(figures.completed),
        "running": float(figures.asked - figures.completed),
        "taken": float(taken),
        "simulated s / s": length_s / took_s,
        "CPU s": took_s,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(ground: Ground) -> Rows:
    """Plans of 70B on a mix of six types, the next one after the loss of a node; 8B served by as
    many nodes of one type; and a local mesh with every id."""
    rows: Rows = {}
    for scale in SCALES[ground.size]:
        counts = {name: -(-scale.nodes // len(TYPES)) for name in TYPES}
        nodes = cluster(counts)[: scale.nodes]
        costs = costs_of(MODEL, "measured")
        problem = Problem(costs, nodes)
        first, first_s = timed(partial(shuntserve.plan, problem, UNLIMITED))
        lost = first.pipelines[0].node_ids[0]
        left = Problem(costs, tuple(node for node in nodes if node.node_id != lost))
        running = first.pipelines
        change = Change(running, {}, generations=(50,) * len(running), tokens_per_generation=800)
        _, next_s = timed(partial(replan, left, change, shuntserve.plan, Unlimited()))
        scenario = sized(scenario_at(FOLDER / "nodes.yaml", scale.horizon_s), scale)
        run = FleetRun(scenario, "full", 0)
        outcome, simulated_s = timed(run.outcome)
        rows[scale.name] = {
            "planned req/s": estimate_plan(costs, running)[0].throughput_rps,
            "first plan s": first_s,
            "next plan s": next_s,
            "finished": float(outcome.counts.finished),
            "running": float(outcome.running),
            "TPOT p50 s": outcome.tpot_s["p50"],
            "simulated s / s": scale.horizon_s / simulated_s,
            "CPU s": simulated_s,
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    day = DAYS[ground.size]
    rows[day.name] = as_flow(day)
    name, cells = every_id(EVERY_ID_S[ground.size])
    return rows | {name: cells}


EXPERIMENT = Experiment(
    FOLDER.name,
    "Decisions and simulated time by the number of nodes",
    COLUMNS,
    measure,
    "simulated s / s",
)
