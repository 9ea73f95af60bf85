"""What is worth doing when requests become others: conversation and code in turns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, mean, played, scenario_at
from experiments.table import Column, Rows
from simulator.fleet.scenario import Scenario
from simulator.fleet.workload import Generator, Request

FOLDER = Path(__file__).parent
FLEETS = {Size.TINY: ("one-gpu",), Size.QUICK: ("one-gpu", "four-gpu")}
FLEETS[Size.FULL] = FLEETS[Size.QUICK]
TURN_S = {Size.TINY: 60.0, Size.QUICK: 300.0, Size.FULL: 900.0}
TURNS = {Size.TINY: 2, Size.QUICK: 4, Size.FULL: 4}
NOTHING, FULL, PHASES = "nothing", "full replan", "phases only"
ANSWERS = {NOTHING: ("full", False), FULL: ("full", True), PHASES: ("thunderserve", True)}
"""By the strategy that stands for it, and whether plans change."""
CONVERSATION = Generator(12_000, 1.0, 763, 232, 0.583, 0.709)
CODE = Generator(12_000, 1.0, 2048, 28, 0.9, 1.5)
"""With means and variations like those of the Azure trace's two services."""
FILES = tuple(f"azure/AzureLLMInferenceTrace_{name}.csv" for name in ("conv", "code"))
COLUMNS = (
    Column("of", ".0f"),
    Column("finished", ".0f"),
    Column("within targets", ".1%"),
    Column("TTFT p50 s", ".2f"),
    Column("TTFT p90 s", ".2f"),
    Column("TPOT p50 s", ".3f"),
    Column("TPOT p90 s", ".3f"),
    Column("plans", ".0f"),
    Column("tokens again", ".0f"),
)


def azure(path: Path) -> tuple[Request, ...]:
    """Requests of one of Azure's files of 2023, in seconds since its first one."""
    with path.open(newline="") as file:
        rows = [
            (datetime.fromisoformat(at[:26]), int(prompt), int(answer))
            for at, prompt, answer in list(csv.reader(file))[1:]
        ]
    began = rows[0][0]
    return tuple(
        Request((at - began).total_seconds(), prompt, max(1, answer)) for at, prompt, answer in rows
    )


def in_turns(
    services: Sequence[Sequence[Request]], rate_rps: float, turn_s: float, turns: int
) -> tuple[Request, ...]:
    """Each service's requests in its turn, all at the same mean rate, one after the other."""
    asked = list[Request]()
    for turn in range(turns):
        requests = services[turn % len(services)]
        span_s = requests[-1].arrival_s - requests[0].arrival_s
        faster = rate_rps * span_s / (len(requests) - 1)
        from_s = turn_s * turn
        at = [replace(one, arrival_s=one.arrival_s / faster) for one in requests]
        asked += [one for one in at if from_s <= one.arrival_s < from_s + turn_s]
    return tuple(asked)


def workloads(ground: Ground) -> dict[str, tuple[Sequence[Request], ...]]:
    """Of both services: drawn ones, and Azure's where they are there."""
    drawn = [one.draw(Random(f"shifts {name}")) for name, one in enumerate((CONVERSATION, CODE))]
    found: dict[str, tuple[Sequence[Request], ...]] = {"drawn": tuple(drawn)}
    files = [ground.public(name) for name in FILES]
    if ground.size is not Size.TINY and all(files):
        found["Azure"] = tuple(azure(path) for path in files if path is not None)
    return found


def asked(scenario: Scenario, requests: tuple[Request, ...], *, replans: bool) -> Scenario:
    """These in place of drawn ones."""
    workload = scenario.document.workload.model_copy(update={"generator": None, "trace": "turns"})
    changed = {"workload": workload, "replans": replans}
    document = scenario.document.model_copy(update=changed)
    return replace(scenario, trace=requests, document=document)


def measure(ground: Ground) -> Rows:
    """Every answer to the same turns."""
    turn_s, turns = TURN_S[ground.size], TURNS[ground.size]
    plays, came = list[Play](), dict[str, int]()
    for fleet in FLEETS[ground.size]:
        scenario = scenario_at(FOLDER / f"{fleet}.yaml", turn_s * turns)
        drawn = scenario.document.workload.generator
        assert drawn is not None
        for name, services in workloads(ground).items():
            requests = in_turns(services, drawn.rate_rps, turn_s, turns)
            for answer, (strategy, replans) in ANSWERS.items():
                row = f"{fleet}, {name}: {answer}"
                plays.append(Play(row, asked(scenario, requests, replans=replans), strategy))
                came[row] = len(requests)
    return {
        row: {
            "of": float(came[row]),
            "finished": sum(one.counts.finished for one in group) / len(group),
            "within targets": sum(one.goodput_rps * one.horizon_s for one in group)
            / len(group)
            / came[row],
            "TTFT p50 s": mean(group, "ttft_s", "p50"),
            "TTFT p90 s": mean(group, "ttft_s", "p90"),
            "TPOT p50 s": mean(group, "tpot_s", "p50"),
            "TPOT p90 s": mean(group, "tpot_s", "p90"),
            "plans": sum(sum(e.kind == "plan_chosen" for e in one.happened) for one in group)
            / len(group),
            "tokens again": mean(group, "tokens_replayed"),
        }
        for row, group in played(FOLDER.name, plays, ground).items()
    }


EXPERIMENT = Experiment(
    FOLDER.name,
    "Conversation and code in turns: another plan, other phases, or nothing",
    COLUMNS,
    measure,
    "within targets",
)
