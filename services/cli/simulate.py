"""`shunt simulate`: what a fleet would come to, by the production cores on a virtual clock."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Column, Table

from services.cli import calibration
from services.cli.told import complain
from services.common.errors import ShuntError

if TYPE_CHECKING:
    from simulator.fleet.result import Outcome
    from simulator.fleet.scenario import Scenario

app = typer.Typer(
    help="What a fleet would come to: cost, goodput, latencies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Task = tuple[Path, str, int]
"""Scenario, strategy and seed."""

ScenarioFile = Annotated[Path, typer.Argument(help="YAML; docs/simulate.md says what it may say.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
Report = Annotated[
    Path | None, typer.Option(help="A folder for an HTML page and its figures; made anew.")
]
Jobs = Annotated[int, typer.Option(min=1, max=256, help="Processes.")]


@app.callback()
def simulate() -> None:
    """What a fleet would come to."""


for command in (calibration.record, calibration.fit, calibration.replay):
    app.command()(command)


@app.command()
def run(
    scenario: ScenarioFile,
    as_json: AsJson = False,
    seed: Annotated[int | None, typer.Option(min=0, help="The file's where none is given.")] = None,
    jobs: Jobs = 1,
    report: Report = None,
) -> None:
    """Runs the scenario under each of its strategies and seeds."""
    tasks = _tasks(scenario, seed)
    _check_report(report)
    outcomes = _outcomes(tasks, jobs)
    _report(report, outcomes)
    if as_json:
        found = [one.as_json() for one in outcomes]
        print(json.dumps(found[0] if len(found) == 1 else found))
    else:
        Console().print(_table(outcomes))


@app.command()
def compare(
    scenarios: Annotated[list[Path], typer.Argument(help="YAML, one or several.")],
    as_json: AsJson = False,
    jobs: Annotated[int, typer.Option(min=0, max=256, help="Processes; 0: one a core.")] = 0,
    report: Report = None,
) -> None:
    """Strategies and scenarios beside each other: means over seeds with 95 % intervals, and
    throughput as a share of the first one's."""
    from simulator.fleet.comparison import compared

    names = [scenario.stem for scenario in scenarios]
    for name in names:
        if names.count(name) > 1:
            complain(f"two scenarios are called {name[:64]}")
            raise typer.Exit(2)
    tasks = [task for scenario in scenarios for task in _tasks(scenario, None)]
    _check_report(report)
    outcomes = _outcomes(tasks, jobs or os.cpu_count() or 1)
    _report(report, outcomes)
    found = compared(outcomes)
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    table = Table("", "seeds", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*found[0].measures, "ratio"):
        table.add_column(name.replace("_", " "), justify="right")
    for one in found:
        cells = [str(value) for value in (*one.measures.values(), one.throughput_ratio)]
        table.add_row(f"{one.scenario} {one.strategy}", str(one.seeds), *cells)
    Console().print(table)


def _check_report(directory: Path | None) -> None:
    """Before runs that may take hours."""
    if directory is not None:
        with _reporting(directory):
            from simulator.fleet.report import check_report

            check_report(directory)


def _report(directory: Path | None, outcomes: Sequence[Outcome]) -> None:
    if directory is None:
        return
    with _reporting(directory):
        from simulator.fleet.report import write_report

        page = write_report(directory, outcomes)
    Console(stderr=True).print(f"report: {page}", soft_wrap=True)


@contextmanager
def _reporting(directory: Path) -> Iterator[None]:
    """A report that cannot be had becomes a line on stderr, and exit status 1."""
    try:
        yield
    except ImportError:
        complain("a report needs matplotlib: pip install 'shuntserve[experiments]'")
        raise typer.Exit(1) from None
    except ShuntError as error:
        complain(f"--report: {error.message}")
        raise typer.Exit(1) from None
    except OSError as error:
        complain(f"--report: {directory}: {error.strerror}")
        raise typer.Exit(1) from None


def _read(path: Path) -> Scenario:
    """A mistake in it becomes a line on stderr, and exit status 2."""
    from simulator.fleet.scenario import read_scenario

    try:
        return read_scenario(path)
    except ShuntError as error:
        complain(error.message)
        raise typer.Exit(2) from None


def _tasks(scenario: Path, seed: int | None) -> list[Task]:
    document = _read(scenario).document
    seeds = document.seeds if seed is None else (seed,)
    return [(scenario, strategy, one) for strategy in document.strategies for one in seeds]


def _outcomes(tasks: Sequence[Task], jobs: int) -> list[Outcome]:
    """In the order of the tasks."""
    progress = Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
    bar = progress.add_task("simulating", total=len(tasks))
    try:
        if jobs == 1:
            with progress:
                return [
                    _outcome(task, partial(_advanced, progress, bar, n))
                    for n, task in enumerate(tasks)
                ]
        outcomes = []
        with ProcessPoolExecutor(min(jobs, len(tasks), os.cpu_count() or 1)) as pool:
            found = pool.map(_outcome, tasks)
            with progress:  # its thread begins behind the processes, which are forks
                for outcome in found:
                    outcomes.append(outcome)
                    progress.advance(bar)
        return outcomes
    except TimeoutError as error:
        complain(str(error))
        raise typer.Exit(1) from None


def _advanced(progress: Progress, bar: TaskID, done: int, share: float) -> None:
    progress.update(bar, completed=done + share)


def _outcome(task: Task, progress: Callable[[float], object] = lambda share: None) -> Outcome:
    from simulator.fleet.run import FleetRun

    path, strategy, seed = task
    return FleetRun(_read(path), strategy, seed).outcome(progress)


def _table(outcomes: Sequence[Outcome]) -> Table:
    name = Column("strategy", overflow="fold")
    table = Table(name, "seed", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("finished", "goodput/s", "SLO", "TTFT s", "P99", "TPOT s", "$", "moves"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in outcomes:
        table.add_row(
            one.strategy,
            str(one.seed),
            f"{one.counts.finished} of {one.counts.arrived}",
            f"{one.goodput_rps:.3f}",
            f"{one.slo_attainment:.1%}",
            f"{one.ttft_s['p50']:.2f}",
            f"{one.ttft_s['p99']:.1f}",
            f"{one.tpot_s['p50']:.3f}",
            f"{one.cost:.2f}",
            str(one.counts.moves),
        )
    return table
