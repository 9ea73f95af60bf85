"""`shunt simulate record`, `fit` and `replay`: a mesh is measured, and the simulator held to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from services.cli.told import complain, told
from services.common.errors import ShuntError
from services.common.private import replace_file
from services.common.results import check_place

if TYPE_CHECKING:
    from simulator.fleet.fidelity import Fidelity

T = TypeVar("T")
RecordingFile = Annotated[Path, typer.Argument(help="What `record` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


def record(
    out: Annotated[Path, typer.Option(help="The recording; JSON lines, no text.")],
    duration: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds.")],
    workload: Annotated[
        Path | None, typer.Option(help="CSV arrival_s,input,output; drawn where none is given.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.001, max=1e4, help="Drawn: requests a second.")] = 1,
    input_mean: Annotated[float, typer.Option(min=1, max=1e6, help="Drawn: tokens.")] = 64,
    output_mean: Annotated[float, typer.Option(min=1, max=1e6, help="Drawn: tokens.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn, prompts too.")] = 0,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="One mesh a data directory.")] = Path(
        ".shunt"
    ),
) -> None:
    """Asks a load of the running mesh, and records requests, steps and events."""
    from services.cli.mesh_directory import MeshDirectory
    from services.cli.recorder import Recorder
    from simulator.fleet.workload import Generator, read_trace

    if workload is not None:
        path = workload
        load = _checked(lambda: read_trace(path))
    else:
        count = max(1, round(rate * duration))
        drawn = Generator(count, rate, input_mean, output_mean, 0.5, 0.5)
        load = drawn.draw(Random(f"record {seed}"))
    with _written(out):
        check_place(out)
    directory = MeshDirectory(data_dir)
    found = told(lambda: asyncio.run(Recorder(directory, load, duration, seed).record()))
    with _written(out):
        replace_file(out, found.text().encode(), 0o644)
    finished = sum(one.outcome == "finished" for one in found.requests)
    print(f"{finished} of {len(found.requests)} requests finished, {len(found.windows)} windows")


def fit(
    recording: RecordingFile,
    out: Annotated[Path, typer.Option(help="The profile; YAML.")],
    token_budget: Annotated[int, typer.Option(min=1, help="The engines' setting.")] = 256,
    max_sequences: Annotated[int, typer.Option(min=1, help="The engines' setting.")] = 64,
) -> None:
    """Fits step times to the first half of a recording, and prints how far they are off."""
    from services.placement.estimate.engine import BatchBounds
    from simulator.fleet.fitting import fit as fitted
    from simulator.fleet.recording import read_recording

    with _written(out):
        check_place(out)
    bounds = BatchBounds(token_budget=token_budget, max_sequences=max_sequences)
    profile, residuals = _checked(lambda: fitted(read_recording(recording), out.stem, bounds))
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)
    with _written(out):
        replace_file(out, text.encode(), 0o644)
    table = Table("stage", "windows", "error", "bias", box=SIMPLE_HEAD)
    for one in residuals:
        table.add_row(one.kind, str(one.windows), f"{one.error:.1%}", f"{one.bias:+.1%}")
    Console().print(table)


def replay(
    recording: RecordingFile,
    profile: Annotated[Path, typer.Option(help="What `fit` wrote.")],
    against: Annotated[
        Path | None, typer.Option(help="A second recording of the same load, to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plays the second half of a recording to the simulator: how far is it off?"""
    from services.placement.estimate.engine import read_profile
    from simulator.fleet.fidelity import repeated, replayed
    from simulator.fleet.recording import read_recording

    first = _checked(lambda: read_recording(recording))
    accounts = {"replay": _checked(lambda: replayed(first, read_profile(profile)))}
    if against is not None:
        other = against
        accounts["repeated"] = _checked(lambda: repeated(first, read_recording(other)))
    if as_json:
        print(json.dumps({name: one.as_json() for name, one in accounts.items()}))
    else:
        Console().print(_table(accounts))


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """A file that cannot be had becomes a line on stderr, and exit status 1."""
    try:
        yield
    except OSError as error:
        complain(f"--out: {out}: {error.strerror}")
        raise typer.Exit(1) from None


def _checked(action: Callable[[], T]) -> T:
    """A mistake in a file becomes a line on stderr, and exit status 2."""
    try:
        return action()
    except ShuntError as error:
        complain(error.message)
        raise typer.Exit(2) from None


def _table(accounts: dict[str, Fidelity]) -> Table:
    """Medians, and biases by percentile."""
    table = Table("", "", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("recorded", "other", "p50", "p90", "p99", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, account in accounts.items():
        for metric, one in account.metrics.items():
            biases = (f"{bias:+.1%}" for bias in (one.p50_bias, one.p90_bias, one.p99_bias))
            recorded, other = (f"{value:.3f}" for value in one.p50)
            table.add_row(name, metric, recorded, other, *biases, f"{one.error:.1%}")
        recorded, other = (f"{rate:.1f}" for rate in account.throughput_tokens_per_s)
        table.add_row(name, "tokens/s", recorded, other, f"{account.throughput_bias:+.1%}")
        table.add_row(name, "moved", *map(str, account.moved))
        if account.computed_bias:
            table.add_row(name, "computing", "", "", f"{account.computed_bias:+.1%}")
    return table
