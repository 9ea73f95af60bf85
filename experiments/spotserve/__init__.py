"""Latencies while instances come and go: SpotServe's traces, and what it is compared with."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, mean, played, scenario_at
from experiments.supply import Change, drawn, events, of_segment
from experiments.table import Column, Rows
from simulator.fleet.scenario import Scenario
from simulator.fleet.workload import Request

FOLDER = Path(__file__).parent
SEGMENTS = {"0203": "trace_0203_real", "0304": "trace_0304_real", "0506": "trace_0506_real"}
TRACES, QUERIES = "spotserve/trace/trace_seg", "spotserve/trace/query/query_realAr_cv6.txt"
INPUT, OUTPUT = 512, 128
NOTICE_S = 30.0
"""SpotServe's grace period."""
STRATEGIES = ("full", "spotserve", "reparallelisation", "none")
TINY = ("full", "reparallelisation")
HORIZON_S = {Size.TINY: 240.0, Size.QUICK: 1200.0, Size.FULL: 1200.0}
COLUMNS = (
    Column("nodes"),
    Column("finished", ".0f"),
    Column("of", ".0f"),
    Column("p50 s", ".1f"),
    Column("p99 s", ".1f"),
    Column("p99 / full", ".2f"),
    Column("TTFT p99 s", ".1f"),
    Column("moves", ".0f"),
    Column("tokens again", ".0f"),
    Column("$", ".2f"),
)


def queries(path: Path) -> tuple[Request, ...]:
    """Of SpotServe's file: number, seconds, and tokens of the prompt."""
    with path.open(newline="") as file:
        return tuple(Request(float(row[1]), INPUT, OUTPUT) for row in csv.reader(file))


def under(scenario: Scenario, name: str, supply: tuple[Change, ...]) -> Scenario:
    """With this supply of its one offer."""
    offer = replace(scenario.offers[0], count=supply[0].count)
    return replace(
        scenario,
        name=name,
        offers=(offer,),
        initial=((offer, offer.count),),
        events=events(offer.offer_id, supply, NOTICE_S),
    )


def asked(scenario: Scenario, trace: tuple[Request, ...]) -> Scenario:
    """These requests in place of drawn ones."""
    workload = scenario.document.workload.model_copy(update={"generator": None, "trace": "public"})
    document = scenario.document.model_copy(update={"workload": workload})
    return replace(scenario, trace=trace, document=document)


def supplies(ground: Ground) -> dict[str, tuple[Change, ...]]:
    """One that is drawn, and SpotServe's segments where they are there."""
    length_s = HORIZON_S[ground.size]
    calm_s = 60.0 if ground.size is Size.TINY else 120.0
    found = {"drawn": drawn("spotserve", length_s=length_s, least=4, most=12, calm_s=calm_s)}
    names = {Size.TINY: (), Size.QUICK: ("0203",), Size.FULL: tuple(SEGMENTS)}[ground.size]
    for name in names:
        path = ground.public(f"{TRACES}/{SEGMENTS[name]}.txt")
        if path is not None:
            found[f"segment {name}"] = of_segment(path)
    return found


def measure(ground: Ground) -> Rows:
    """P99 of each strategy beside that of full."""
    base = scenario_at(FOLDER / "nodes.yaml", HORIZON_S[ground.size])
    public = ground.public(QUERIES)
    names = TINY if ground.size is Size.TINY else STRATEGIES
    plays, counts = list[Play](), dict[str, str]()
    for name, supply in supplies(ground).items():
        scenario = under(base, name, supply)
        if name != "drawn" and public is not None:
            scenario = asked(scenario, queries(public))
        for strategy in names:
            plays.append(Play(f"{name}, {strategy}", scenario, strategy))
            there = [one.count for one in supply if one.at_s < HORIZON_S[ground.size]]
            counts[plays[-1].row] = f"{there[0]}, {min(there)} to {max(there)}"
    found = played(FOLDER.name, plays, ground)
    rows: Rows = {}
    for row, group in found.items():
        full = found[row.rsplit(", ", 1)[0] + ", full"]
        rows[row] = {
            "nodes": counts[row],
            "finished": sum(one.counts.finished for one in group) / len(group),
            "of": sum(one.counts.arrived for one in group) / len(group),
            "p50 s": mean(group, "e2e_s", "p50"),
            "p99 s": mean(group, "e2e_s", "p99"),
            "p99 / full": mean(group, "e2e_s", "p99") / max(1e-9, mean(full, "e2e_s", "p99")),
            "TTFT p99 s": mean(group, "ttft_s", "p99"),
            "moves": sum(one.counts.moves for one in group) / len(group),
            "tokens again": mean(group, "tokens_replayed"),
            "$": mean(group, "cost"),
        }
    return rows


EXPERIMENT = Experiment(
    FOLDER.name,
    "A 32B model on four-T4 instances that come and go (SpotServe's traces)",
    COLUMNS,
    measure,
    "p99 s",
)
