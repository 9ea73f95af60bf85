"""Plans in words, for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.search.problem import Problem
from services.placement.search.score import score, violation
from services.placement.search.transport import carried_rps


def shape(pipelines: Sequence[PlacedPipeline]) -> str:
    """How many pipelines there are, of how many nodes each."""
    if not pipelines:
        return "no pipeline"
    sizes = Counter(len(pipeline.stages) for pipeline in pipelines)
    parts = [f"{count} of {_plural(size, 'node')}" for size, count in sorted(sizes.items())]
    if len(parts) == 1 and len(pipelines) == 1:
        return f"1 pipeline of {_plural(len(pipelines[0].stages), 'node')}"
    if len(parts) == 1:
        (size,) = sizes
        return f"{len(pipelines)} pipelines of {_plural(size, 'node')} each"
    return f"{len(pipelines)} pipelines: {', '.join(parts)}"


def figures(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> str:
    """What they carry and cost; no cost where nothing costs anything."""
    rates = [estimate_pipeline(problem.costs, p).throughput_rps for p in pipelines]
    rate = carried_rps(problem.costs, pipelines, rates) if pipelines else 0.0
    cost = sum(pipeline.cost_per_hour for pipeline in pipelines)
    return f"{rate:.3g} requests/s" + (f" at {cost:.3f} $/h" if cost else "")


def lacks(
    problem: Problem, pipelines: Sequence[PlacedPipeline], chosen: Sequence[PlacedPipeline]
) -> str:
    """What the one lacks of the other, under the objective."""
    late, _ = violation(problem, pipelines)
    if late:
        return late
    mine, best = score(problem, pipelines), score(problem, chosen)
    against = f"{figures(problem, pipelines)} against {figures(problem, chosen)}"
    if mine > best > 0 and math.isfinite(mine):
        return f"{mine / best - 1:.1%} better, and not what was asked for: {against}"
    less = 1 - mine / best if best > 0 and math.isfinite(best) else 0.0
    return f"{less:.1%} worse: {against}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
