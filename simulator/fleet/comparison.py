"""Strategies beside each other: means over seeds, each with its 95 % confidence interval.

Source of the interval: Student's t, for seeds are few. A strategy is also compared with the first
one seed by seed, so that what a seed does to both is not counted as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from simulator.fleet.result import Outcome

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and half of its interval; None where one value says nothing of that."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if self.half is None else f"{self.mean:.3g} ± {self.half:.2g}"


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "throughput_rps": lambda one: one.throughput_rps,
    "goodput_rps": lambda one: one.goodput_rps,
    "slo_attainment": lambda one: one.slo_attainment,
    "ttft_p99_s": lambda one: one.ttft_s["p99"],
    "tpot_mean_s": lambda one: one.tpot_s["mean"],
    "cost": lambda one: one.cost,
    "cost_per_1000": lambda one: 1000 * one.cost / max(1, one.counts.finished),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One strategy of one scenario."""

    scenario: str
    strategy: str
    seeds: int
    measures: dict[str, Estimate]
    throughput_ratio: Estimate
    """To the first strategy's, seed by seed."""


def estimate(values: Sequence[float]) -> Estimate:
    """Of values that were drawn independently."""
    if len(values) < 2:
        return Estimate(fmean(values), None)
    from scipy.stats import t

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(fmean(values), quantile * stdev(values) / sqrt(len(values)))


def compared(outcomes: Sequence[Outcome]) -> list[Compared]:
    """By scenario and strategy, in the order in which they come."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.scenario, one.strategy), []).append(one)
    found = []
    for (scenario, strategy), group in groups.items():
        first = next(runs for (name, _), runs in groups.items() if name == scenario)
        base = {one.seed: one.throughput_rps for one in first}
        ratios = [one.throughput_rps / max(1e-12, base[one.seed]) for one in group]
        measures = {
            name: estimate([measure(one) for one in group]) for name, measure in MEASURES.items()
        }
        found.append(Compared(scenario, strategy, len(group), measures, estimate(ratios)))
    return found
