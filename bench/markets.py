"""The replanner in random spot markets, against one that knows the market ahead.

`python -m bench.markets` replays hours of prices, capacity and arrivals, and prints JSON: by how
many requests less are served, and how much dearer one is, than with the best plan of every moment
at once and without a move. Nothing runs but the cores; a progress bar shows the markets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from rich.progress import track

from services.controller.core.cluster.replanning import ReplanSettings
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.model import load_model
from services.placement.search.planners import shuntserve
from services.placement.search.problem import Objective, ObjectiveKind
from simulator.fleet.market import Kind, MarketSettings, Moment, random_market
from simulator.fleet.replay import Bill, Replay, bound

MODEL = "qwen3-32b"
TYPES = ("g5.12xlarge", "g6.12xlarge", "g6e.xlarge", "g6.xlarge", "g5.xlarge", "g6e.12xlarge")
OBJECTIVE = Objective(ObjectiveKind.THROUGHPUT_PER_COST)
HORIZON_S = 1800.0
GOAL = 0.15
"""Most that may be lost in the median, of requests and of dollars a request."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One market."""

    seed: int
    moments: int
    lost: float
    """Share of the bound's requests that was not served."""
    dearer: float
    """Of a request, as a share of the bound's price."""
    changes: int
    questions: int


def outcome(seed: int, length_s: float) -> Outcome:
    catalogue = load_catalogue()
    kinds = [Kind(name, catalogue.instance(name).price_per_hour) for name in TYPES]
    costs = Costs(load_model(MODEL), Workload(), load_calibration("measured"), catalogue)
    settings = ReplanSettings()
    moments = random_market(Random(seed), kinds, MarketSettings(length_s=length_s))
    ours = Replay(
        costs, catalogue, moments, length_s, OBJECTIVE, shuntserve.plan, settings, HORIZON_S
    ).run()
    best = bound(
        costs,
        catalogue,
        moments,
        length_s,
        OBJECTIVE,
        shuntserve.plan,
        settings.candidates_an_offer,
    )
    return _compared(seed, moments, ours, best)


def _compared(seed: int, moments: tuple[Moment, ...], ours: Bill, best: Bill) -> Outcome:
    return Outcome(
        seed,
        len(moments),
        1 - ours.requests / best.requests,
        (ours.dollars / ours.requests) / (best.dollars / best.requests) - 1,
        ours.changes,
        ours.questions,
    )


def outcomes(markets: int, hours: float, *, quiet: bool = False) -> Iterator[Outcome]:
    for seed in track(range(markets), "markets", disable=quiet):
        yield outcome(seed, hours * 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", type=int, default=200)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = list(outcomes(chosen.markets, chosen.hours))
    lost = statistics.median(one.lost for one in found)
    dearer = statistics.median(one.dearer for one in found)
    figures = {
        "markets": len(found),
        "lost_median": lost,
        "dearer_median": dearer,
        "lost_worst": max(one.lost for one in found),
        "dearer_worst": max(one.dearer for one in found),
        "changes_a_moment": sum(o.changes for o in found) / sum(o.moments for o in found),
        "each": [asdict(one) for one in found],
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")
    if max(lost, dearer) > GOAL:
        sys.exit(f"goal missed: {GOAL:.0%}")


if __name__ == "__main__":
    main()
