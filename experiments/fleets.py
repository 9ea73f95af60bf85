"""Scenarios that experiments play: read, cut to a size, and run over the cores of the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import track

from experiments.experiment import Ground, Size
from services.placement.estimate.cluster import PlacedPipeline
from simulator.fleet.comparison import estimate
from simulator.fleet.report import write_report
from simulator.fleet.result import Outcome
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import Scenario, StageRow, read_scenario

Plan = tuple[PlacedPipeline, ...]


@dataclass(frozen=True, slots=True)
class Play:
    """A scenario under a strategy, and the row that it makes."""

    row: str
    scenario: Scenario
    strategy: str = "full"

    def seeds(self, size: Size) -> tuple[int, ...]:
        """The scenario's; but for a full run its first."""
        seeds = self.scenario.document.seeds
        return seeds if size is Size.FULL else seeds[:1]


def cut(scenario: Scenario, horizon_s: float) -> Scenario:
    """It ends no later."""
    document = scenario.document
    shorter = document.model_copy(update={"horizon_s": min(horizon_s, document.horizon_s)})
    return replace(scenario, document=shorter)


def scenario_at(path: Path, horizon_s: float) -> Scenario:
    """Of a file; it ends no later."""
    return cut(read_scenario(path), horizon_s)


def beginning_with(scenario: Scenario, plan: Plan) -> Scenario:
    """The plan is the first one; its nodes are called `OFFER/NUMBER`."""
    rows = tuple(
        tuple(
            StageRow(offer=stage.node.node_id.split("/")[0], layers=stage.layers, tp=stage.tp)
            for stage in pipeline.stages
        )
        for pipeline in plan
    )
    return replace(scenario, document=scenario.document.model_copy(update={"first_plan": rows}))


def played(name: str, plays: Sequence[Play], ground: Ground) -> dict[str, list[Outcome]]:
    """By row, an outcome for each seed. Raises NotConserved where a run's books do not balance."""
    tasks = [(play, seed) for play in plays for seed in play.seeds(ground.size)]
    with ExitStack() as stack:
        over = (
            map if ground.jobs == 1 else stack.enter_context(ProcessPoolExecutor(ground.jobs)).map
        )
        quiet = not sys.stderr.isatty()
        done = list(track(over(_outcome, tasks), name, len(tasks), disable=quiet))
    found: dict[str, list[Outcome]] = {}
    for (play, _), outcome in zip(tasks, done, strict=True):
        found.setdefault(play.row, []).append(outcome)
    if ground.report is not None:
        write_report(ground.report / name, done)
    return found


def _outcome(task: tuple[Play, int]) -> Outcome:
    play, seed = task
    return FleetRun(play.scenario, play.strategy, seed).outcome()


def mean(outcomes: Sequence[Outcome], name: str, share: str = "") -> float:
    """Over seeds, of an attribute, or of a percentile of one."""
    values = [getattr(one, name) for one in outcomes]
    return estimate([float(value[share] if share else value) for value in values]).mean


def half(values: Sequence[float]) -> float | None:
    """Of the 95 % interval of their mean."""
    return estimate(values).half
