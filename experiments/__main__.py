"""Experiments on simulated fleets: `python -m experiments [--quick]` prints each one's table.

Each is a folder of scenarios with the figures that were published of the same thing. A table is
compared with the one that is checked in (`expected.json`): who differs by more than rounding on
another machine comes to ends it with status 1. `--quick` runs one seed of each, `--write` writes
what is expected anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from simulator.fleet.comparison import Estimate, estimate
from simulator.fleet.report import write_report
from simulator.fleet.result import Outcome
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import read_scenario

HERE = Path(__file__).parent
EXPECTED = "expected.json"
SAME = 0.02
"""Machines round differently, and a simulation of an hour makes more of it."""


@dataclass(frozen=True, slots=True)
class Published:
    """What an evaluation reported of one of its runs."""

    throughput_rps: float
    ttft_mean_s: float
    tpot_mean_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario under a strategy, and what it stands for."""

    scenario: str
    strategy: str
    published: Published | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """Rows, the first of which the others are shares of."""

    folder: str
    title: str
    rows: tuple[Row, ...]


EXPERIMENTS = (
    Experiment(
        "spot-tolerance",
        "70B through an hour of interruptions (ShuntServe's scenario A, offline)",
        (
            Row("uninterrupted", "full", Published(1.321, 67.7, 1.008)),
            Row("scenario-a", "full", Published(1.193, 62.3, 1.224)),
            Row("scenario-a", "concurrent-init", Published(1.102, 155.8, 1.007)),
            Row("scenario-a-stops", "migration", Published(1.025, 61.0, 1.489)),
            Row("scenario-a-stops", "none", Published(0.952, 212.9, 1.007)),
            Row("scenario-a-replans", "full"),
            Row("scenario-a-replans", "spotserve"),
        ),
    ),
)


def played(task: tuple[Path, str, int]) -> Outcome:
    path, strategy, seed = task
    return FleetRun(read_scenario(path), strategy, seed).outcome()


def outcomes(experiment: Experiment, *, quick: bool, jobs: int) -> list[list[Outcome]]:
    """Of each row one for each seed."""
    folder = HERE / experiment.folder
    tasks = []
    for row in experiment.rows:
        path = folder / f"{row.scenario}.yaml"
        seeds = read_scenario(path).document.seeds[: 1 if quick else None]
        tasks.append([(path, row.strategy, seed) for seed in seeds])
    flat = [task for group in tasks for task in group]
    with ProcessPoolExecutor(jobs) as pool:
        done = iter(
            list(
                track(pool.map(played, flat), experiment.folder, total=len(flat), disable=_quiet())
            )
        )
    return [[next(done) for _ in group] for group in tasks]


def _quiet() -> bool:
    return not sys.stderr.isatty()


def ratios(runs: list[list[Outcome]]) -> list[Estimate]:
    """Throughput as a share of the first row's, seed by seed."""
    first = {one.seed: one.throughput_rps for one in runs[0]}
    return [estimate([one.throughput_rps / first[one.seed] for one in group]) for group in runs]


def table(experiment: Experiment, runs: list[list[Outcome]]) -> Table:
    base = experiment.rows[0].published
    made = Table("", title=experiment.title)
    for name in ("req/s", "share", "TTFT s", "TPOT s", "$", "moves"):
        made.add_column(name, justify="right")
    for name in ("published req/s", "share"):
        made.add_column(name, justify="right", style="dim")
    for row, group, share in zip(experiment.rows, runs, ratios(runs), strict=True):
        said = row.published
        made.add_row(
            f"{row.scenario} {row.strategy}",
            str(estimate([one.throughput_rps for one in group])),
            str(share),
            f"{estimate([one.ttft_s['mean'] for one in group]).mean:.1f}",
            f"{estimate([one.tpot_s['mean'] for one in group]).mean:.3f}",
            f"{estimate([one.cost for one in group]).mean:.2f}",
            f"{estimate([float(one.counts.moves) for one in group]).mean:.0f}",
            f"{said.throughput_rps:.3f}" if said is not None else "",
            f"{said.throughput_rps / base.throughput_rps:.2f}" if said and base else "",
        )
    return made


def summary(experiment: Experiment, runs: list[list[Outcome]]) -> dict[str, Any]:
    """By row and seed."""
    return {
        f"{row.scenario} {row.strategy} {one.seed}": {
            "throughput_rps": one.throughput_rps,
            "ttft_mean_s": one.ttft_s["mean"],
            "tpot_mean_s": one.tpot_s["mean"],
            "cost": one.cost,
        }
        for row, group in zip(experiment.rows, runs, strict=True)
        for one in group
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Figures that are others than expected, beyond rounding, or were not expected at all."""
    return [
        f"{run}: {name} is {value:.4g}, not {expected.get(run, {}).get(name)}"
        for run, figures in found.items()
        for name, value in figures.items()
        if name not in expected.get(run, {})
        or abs(value - expected[run][name]) > SAME * abs(expected[run][name])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    wrong = list[str]()
    for experiment in EXPERIMENTS:
        runs = outcomes(experiment, quick=chosen.quick, jobs=chosen.jobs)
        Console().print(table(experiment, runs))
        found, file = summary(experiment, runs), HERE / experiment.folder / EXPECTED
        if chosen.report is not None:
            write_report(chosen.report / experiment.folder, [one for g in runs for one in g])
        if chosen.write:
            file.write_text(json.dumps(found, indent=2) + "\n")
        else:
            wrong += differences(json.loads(file.read_text()), found)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
