"""70B and 32B through an hour of interruptions: ShuntServe's scenario A, offline, by strategy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, half, mean, played, scenario_at
from experiments.table import Cell, Column, Rows

FOLDER = Path(__file__).parent
TINY = ("full", "none")
HORIZON_S = {Size.TINY: 480.0, Size.QUICK: 3600.0, Size.FULL: 3600.0}


@dataclass(frozen=True, slots=True)
class Published:
    """What the evaluation reported of one of its runs."""

    throughput_rps: float
    ttft_mean_s: float
    tpot_mean_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario under a strategy, and what it stands for."""

    scenario: str
    strategy: str
    published: Published | None = None

    whole: str = "uninterrupted"
    """The scenario of the run that it is a share of."""
    without: str = "scenario-a-stops"
    """That in which nothing is handled."""

    @property
    def name(self) -> str:
        return f"{self.scenario} {self.strategy}"


HELD_OUT, HELD_OUT_NONE = "32b-uninterrupted", "32b-scenario-a-stops"
"""Runs of which nothing was fitted."""
REPLANS_NONE = "scenario-a-stops-replans"
ROWS = (
    Row("uninterrupted", "full", Published(1.321, 67.7, 1.008)),
    Row("scenario-a", "full", Published(1.193, 62.3, 1.224)),
    Row("scenario-a", "concurrent-init", Published(1.102, 155.8, 1.007)),
    Row("scenario-a-stops", "migration", Published(1.025, 61.0, 1.489)),
    Row("scenario-a-stops", "none", Published(0.952, 212.9, 1.007)),
    Row("scenario-a-replans", "full", without=REPLANS_NONE),
    Row("scenario-a-replans", "spotserve", without=REPLANS_NONE),
    Row(REPLANS_NONE, "none", without=REPLANS_NONE),
    Row("32b-uninterrupted", "full", Published(5.384, 24.3, 0.621), HELD_OUT, HELD_OUT_NONE),
    Row("32b-scenario-a", "full", Published(5.312, 24.0, 0.632), HELD_OUT, HELD_OUT_NONE),
    Row(
        "32b-scenario-a", "concurrent-init", Published(5.119, 34.0, 0.623), HELD_OUT, HELD_OUT_NONE
    ),
    Row(
        "32b-scenario-a-stops", "migration", Published(4.878, 23.7, 0.681), HELD_OUT, HELD_OUT_NONE
    ),
    Row("32b-scenario-a-stops", "none", Published(4.779, 41.1, 0.615), HELD_OUT, HELD_OUT_NONE),
)
PUBLISHED = {row.name: row.published for row in ROWS}
NONE = "none"
COLUMNS = (
    Column("req/s", ".3f"),
    Column("share", ".2f"),
    Column("±", ".2g"),
    Column("published req/s", ".3f"),
    Column("published share", ".2f"),
    Column("over none", ".2f"),
    Column("published over none", ".2f"),
    Column("TTFT mean s", ".1f"),
    Column("TPOT mean s", ".3f"),
    Column("$", ".2f"),
    Column("moves", ".0f"),
)


def measure(ground: Ground) -> Rows:
    """Shares are of the throughput of the run without interruption, seed by seed."""
    asked = [
        row
        for row in ROWS
        if ground.size is not Size.TINY or (row.strategy in TINY and row.whole != HELD_OUT)
    ]
    plays = [
        Play(
            row.name,
            scenario_at(FOLDER / f"{row.scenario}.yaml", HORIZON_S[ground.size]),
            row.strategy,
        )
        for row in asked
    ]
    found = played(FOLDER.name, plays, ground)
    rows: Rows = {}
    for row in asked:
        group, said, base = found[row.name], row.published, PUBLISHED[f"{row.whole} full"]
        whole = {one.seed: one.throughput_rps for one in found[f"{row.whole} full"]}
        shares = [one.throughput_rps / whole[one.seed] for one in group]
        without = f"{row.without} {NONE}"
        none, least = PUBLISHED[without], found[without]
        handles = row.strategy != NONE and row.scenario != row.whole
        cells: dict[str, Cell] = {
            "req/s": mean(group, "throughput_rps"),
            "share": sum(shares) / len(shares),
            "±": half(shares),
            "published req/s": said.throughput_rps if said else None,
            "published share": said.throughput_rps / base.throughput_rps if said and base else None,
            "over none": mean(group, "throughput_rps") / mean(least, "throughput_rps")
            if handles
            else None,
            "published over none": said.throughput_rps / none.throughput_rps
            if handles and said and none
            else None,
            "TTFT mean s": mean(group, "ttft_s", "mean"),
            "TPOT mean s": mean(group, "tpot_s", "mean"),
            "$": mean(group, "cost"),
            "moves": sum(one.counts.moves for one in group) / len(group),
        }
        rows[row.name] = cells
    return rows


EXPERIMENT = Experiment(
    FOLDER.name,
    "70B and 32B through an hour of interruptions (ShuntServe's scenario A, offline)",
    COLUMNS,
    measure,
    "share",
)
