"""A report of simulated runs: one HTML file that needs no server, its figures beside it as PNG.

It is written whole or not at all: into a folder beside, which takes the place of the one that was
asked for once everything is there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from pathlib import Path

from services.common.errors import AlreadyExists
from services.common.results import check_folder
from simulator.fleet import figures
from simulator.fleet.comparison import Compared, compared
from simulator.fleet.result import Outcome

MOST_FIGURES = 60
"""Runs of more are in the tables only."""
PAGE, RUNS = "index.html", "runs.json"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;text-align:right;"
    "border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}img{width:100%}"
)


def check_report(directory: Path) -> None:
    """Whether one could be written there. Raises AlreadyExists where there is something that is no
    report, OSError, and ImportError without matplotlib."""
    import_module("matplotlib")
    if directory.exists() and not _is_report(directory):
        raise AlreadyExists(f"{directory} is there and is no report", field="report")
    check_folder(directory)


def write_report(directory: Path, outcomes: Sequence[Outcome]) -> Path:
    """The page. Raises as `check_report` does."""
    check_report(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write(made, outcomes)
        if directory.exists():
            shutil.rmtree(directory)
        made.chmod(0o755)
        made.rename(directory)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return directory / PAGE


def _is_report(directory: Path) -> bool:
    """It is a folder with a report and nothing else, or with nothing."""
    if not directory.is_dir():
        return False
    names = {one.name for one in directory.iterdir() if one.suffix != ".png"}
    return not any(directory.iterdir()) or names == {PAGE, RUNS}


def _write(directory: Path, outcomes: Sequence[Outcome]) -> None:
    pictures = {"side-by-side": figures.side_by_side(outcomes)}
    for one in outcomes[:MOST_FIGURES]:
        pictures[f"{one.scenario}-{one.strategy}-{one.seed}"] = figures.over_time(one)
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)
    data = [one.as_json() for one in outcomes]
    (directory / RUNS).write_text(json.dumps(data, indent=2) + "\n")
    (directory / PAGE).write_text(_page(outcomes, pictures))


def _page(outcomes: Sequence[Outcome], pictures: dict[str, bytes]) -> str:
    names = ", ".join(dict.fromkeys(one.scenario for one in outcomes))
    parts = [f"<h1>{escape(names)}</h1>", _compared(compared(outcomes)), _runs(outcomes)]
    for name, png in pictures.items():
        image = b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(name)}.png</figcaption></figure>"
        )
    parts.append(_interruptions(outcomes))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(names)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object], kind: str) -> str:
        made = "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in cells)
        return f"<tr>{made}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _compared(found: Sequence[Compared]) -> str:
    names = list(found[0].measures)
    rows = (
        (
            f"{one.scenario} {one.strategy}",
            one.seeds,
            *(one.measures[name] for name in names),
            one.throughput_ratio,
        )
        for one in found
    )
    head = ("", "seeds", *names, "throughput / first")
    return f"<h2>Means over seeds, 95 % intervals</h2>{_table(head, rows)}"


def _runs(outcomes: Sequence[Outcome]) -> str:
    head = (
        *("", "seed", "finished", "refused", "failed", "running", "TTFT P50 s", "TTFT P99 s"),
        *("TPOT P50 s", "P99 s", "$", "on demand $", "saved", "moves", "tokens again"),
    )
    rows = (
        (
            f"{one.scenario} {one.strategy}",
            one.seed,
            f"{one.counts.finished} of {one.counts.arrived}",
            one.counts.refused,
            one.counts.failed,
            one.running,
            f"{one.ttft_s['p50']:.2f}",
            f"{one.ttft_s['p99']:.1f}",
            f"{one.tpot_s['p50']:.3f}",
            f"{one.tpot_s['p99']:.3f}",
            f"{one.cost:.2f}",
            f"{one.on_demand_cost:.2f}",
            f"{1 - one.cost / one.on_demand_cost:.0%}" if one.on_demand_cost else "",
            one.counts.moves,
            one.tokens_replayed,
        )
        for one in outcomes
    )
    return f"<h2>Runs</h2>{_table(head, rows)}"


def _interruptions(outcomes: Sequence[Outcome]) -> str:
    head = ("", "seed", "at s", "offer", "nodes", "notice s", "moves", "gap P50 s", "longest s")
    rows = [
        (
            f"{run.scenario} {run.strategy}",
            run.seed,
            f"{one.at_s:.0f}",
            one.offer_id,
            one.nodes,
            f"{one.notice_s:g}",
            one.moves,
            f"{one.gap_p50_s:.2f}",
            f"{one.gap_max_s:.1f}",
        )
        for run in outcomes
        for one in run.interruptions
    ]
    return f"<h2>Interruptions</h2>{_table(head, rows)}" if rows else ""
