"""How wide the beam of our planner has to be: the rate of its plans, and the time they take."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

from bench.placement import MODELS, costs_of, problems
from bench.placement_clusters import PAPER, PAPER_PRICES, cluster, cluster_of_gpus
from experiments.experiment import Experiment, Ground, Size
from experiments.table import Column, Rows
from services.common.errors import FailedPrecondition
from services.placement.estimate.estimator import estimate_plan
from services.placement.search.budget import UNLIMITED
from services.placement.search.planners import exact, shuntserve
from services.placement.search.planners.shuntserve import Effort
from services.placement.search.problem import Problem

FOLDER = Path(__file__).parent
WIDTHS = {
    Size.TINY: (1, 200),
    Size.QUICK: (1, 5, 25, 100, 200, 400),
    Size.FULL: (1, 2, 5, 10, 25, 50, 100, 200, 400, 800),
}
RANDOM = {Size.TINY: 1, Size.QUICK: 10, Size.FULL: 60}
"""Clusters of two to eight nodes."""
GPUS = {Size.TINY: (), Size.QUICK: (128,), Size.FULL: (128, 1000)}
KEPT = 5
"""Candidates that are packed, for a state of the beam."""
COLUMNS = (
    Column("mean share of the best", ".4f"),
    Column("least share", ".4f"),
    Column("found none", ".0f"),
    Column("mean s", ".3f", measured=True),
    Column("longest s", ".3f", measured=True),
)


def rate_of(problem: Problem, width: int) -> float:
    """Requests a second of the plan that a beam so wide finds; 0 where it finds none."""
    try:
        found = shuntserve.plan(problem, UNLIMITED, Effort(width, KEPT * width))
    except FailedPrecondition:
        return 0.0
    return estimate_plan(problem.costs, found.pipelines)[0].throughput_rps


def proven(problem: Problem) -> float:
    """The best there is, by the exact planner."""
    found = exact.plan(problem, UNLIMITED)
    return estimate_plan(problem.costs, found.pipelines)[0].throughput_rps


def grounds(size: Size) -> dict[str, tuple[list[Problem], bool]]:
    """Problems by name, and whether the exact planner can tell their best."""
    paper = [
        Problem(costs_of(model, calibration), cluster(PAPER, PAPER_PRICES))
        for model in (MODELS[1:] if size is Size.TINY else MODELS)
        for calibration in ("nominal", "measured")
    ]
    found = {
        "evaluation's nodes": (paper, True),
        f"{RANDOM[size]} random clusters": ([one for _, one in problems(RANDOM[size])], True),
    }
    for gpus in GPUS[size]:
        large = [Problem(costs_of(model, "measured"), cluster_of_gpus(gpus, 0)) for model in MODELS]
        found[f"{gpus} GPUs"] = large, False
    return found


def measure(ground: Ground) -> Rows:
    """Shares of the best that is proven; where the cluster is too large for that, of the best
    that any width found."""
    rows: Rows = {}
    for name, (asked, provable) in grounds(ground.size).items():
        rates: dict[int, list[float]] = {}
        times: dict[int, list[float]] = {}
        for width in WIDTHS[ground.size]:
            for problem in asked:
                began_s = time.process_time()
                rates.setdefault(width, []).append(rate_of(problem, width))
                times.setdefault(width, []).append(time.process_time() - began_s)
        best = [max(each) for each in zip(*rates.values(), strict=True)]
        if provable:
            best = [max(proven(one), known) for one, known in zip(asked, best, strict=True)]
        for width, found in rates.items():
            shares = [rate / most for rate, most in zip(found, best, strict=True)]
            rows[f"{name}, width {width}"] = {
                "mean share of the best": fmean(shares),
                "least share": min(shares),
                "found none": float(sum(not rate for rate in found)),
                "mean s": fmean(times[width]),
                "longest s": max(times[width]),
            }
    return rows


EXPERIMENT = Experiment(
    FOLDER.name,
    "Beam width: how good plans are, and how long they take",
    COLUMNS,
    measure,
    "mean share of the best",
)
