"""Experiments: `python -m experiments [NAME ...] [--size tiny|quick|full]` prints each one's table.

Each is a folder: scenario files, a README that says what is asked and how, and the table that is
expected. A figure that differs from that by more than rounding on another machine comes to ends it
with status 1. `--write` writes what is expected, and the READMEs' tables, anew: what is of the
machine (seconds, and what a mesh on it did) only with `--measured`, and no mesh is started without.
Public traces and measurements are read from `--data` (or SHUNT_BENCH_DATA) and never copied.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.figure import bars
from experiments.registry import EXPERIMENTS
from experiments.table import differences, markdown, rounded


def run(experiment: Experiment, ground: Ground, *, write: bool, measured: bool) -> list[str]:
    """Prints its table; what is other than expected."""
    rows = experiment.measure(ground)
    print(f"{experiment.title}\n\n{markdown(experiment.columns, rows)}\n", flush=True)
    if ground.report is not None:
        ground.report.mkdir(parents=True, exist_ok=True)
        picture = bars(experiment.title, experiment.bars, rows)
        (ground.report / f"{experiment.folder}.png").write_bytes(picture)
    if write:
        experiment.write(ground.size, rows, measured=measured)
        return []
    expected = experiment.expected().get(ground.size.value, {})
    whole = ground.data is not None
    told = differences(experiment.columns, expected, rounded(rows), whole=whole)
    return [f"{experiment.folder} {one}" for one in told]


def _leave(number: int, frame: object) -> None:
    """What was started for this run is ended on the way out, as by Ctrl-C."""
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {one.folder: one for one in EXPERIMENTS}
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--size", type=Size, choices=list(Size), action="append")
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--measured", action="store_true", help="writes what is of this machine, too"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, help="a folder for reports and figures")
    place = os.environ.get("SHUNT_BENCH_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(place))
    chosen = parser.parse_args()
    for name in chosen.names:
        if name not in known:
            parser.error(f"{name} is none of {', '.join(known)}")
    if chosen.measured and not chosen.write:
        parser.error("--measured goes with --write")
    signal.signal(signal.SIGTERM, _leave)
    data = chosen.data if chosen.data.is_dir() else None
    if data is None:
        print(f"no public data at {chosen.data}: rows of public traces are left out")
    wrong = list[str]()
    for size in chosen.size or [Size.FULL]:
        measures = chosen.measured or not chosen.write
        ground = Ground(size, chosen.jobs, data, chosen.report, measures)
        for name in chosen.names or known:
            wrong += run(known[name], ground, write=chosen.write, measured=chosen.measured)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
