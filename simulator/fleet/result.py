"""What a run came to: counts, latencies, cost, and how they went over time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from simulator.fleet.batch import Generation
from simulator.fleet.counts import Counts


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one time; seconds since the workload began."""

    at_s: float
    nodes: dict[str, int]
    """By offer."""
    pipelines: int
    running: int
    waiting: int
    finished: int
    cost: float


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that the controller logged."""

    at_s: float
    kind: str
    node_id: str
    pipeline_id: str
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Interruption:
    """Nodes of one offer that were taken together, and what readers saw of it."""

    at_s: float
    offer_id: str
    nodes: int
    notice_s: float
    moves: int = 0
    """Of generations, from then until the next interruption."""
    gap_p50_s: float = 0.0
    """Of the longest gap of each one that was moved."""
    gap_max_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Moves:
    """Generations that went on elsewhere, and what readers of each saw of it at the most."""

    count: int
    gap_p50_s: float
    gap_max_s: float


@dataclass(frozen=True, slots=True)
class Targets:
    """Within which a request counts for the goodput; None does not bind."""

    ttft_s: float | None
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Account:
    """What a run's requests came to, by whoever followed them."""

    running: int
    over: float
    """Finished, refused or failed."""
    good: float
    """Finished within both targets."""
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]
    e2e_s: dict[str, float]
    tokens_replayed: int
    tokens_out: int
    done: tuple[Generation, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    scenario: str
    strategy: str
    seed: int
    horizon_s: float
    counts: Counts
    running: int
    """Requests that were under way when it ended."""
    goodput_rps: float
    """Requests that finished within both targets, a second."""
    slo_attainment: float
    """Their share of those that finished, or were refused or failed."""
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]
    e2e_s: dict[str, float]
    cost: float
    on_demand_cost: float
    cost_by_offer: dict[str, float]
    tokens_replayed: int
    tokens_out: int
    """That readers got."""
    preempted: int
    interruptions: tuple[Interruption, ...]
    samples: tuple[Sample, ...]
    happened: tuple[Happened, ...]
    done: tuple[Generation, ...]
    """Of a flow one for each parcel of requests, however many they are."""

    @property
    def throughput_rps(self) -> float:
        return self.counts.finished / self.horizon_s

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        counts = self.counts
        return {
            "scenario": self.scenario,
            "strategy": self.strategy,
            "seed": self.seed,
            "horizon_s": self.horizon_s,
            "requests": {
                "arrived": counts.arrived,
                "finished": counts.finished,
                "refused": counts.refused,
                "failed": counts.failed,
                "running": self.running,
            },
            "throughput_rps": self.throughput_rps,
            "goodput_rps": self.goodput_rps,
            "slo_attainment": self.slo_attainment,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "e2e_s": self.e2e_s,
            "cost": self.cost,
            "on_demand_cost": self.on_demand_cost,
            "cost_by_offer": self.cost_by_offer,
            "interruptions": sum(one.nodes for one in self.interruptions),
            "moves": counts.moves,
            "tokens_replayed": self.tokens_replayed,
            "tokens_out": self.tokens_out,
            "preempted": self.preempted,
        }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order, the least that this share of them does not exceed; 0 of none."""
    if not ordered:
        return 0.0
    rank = min(len(ordered) - 1, max(0, -(-round(share * len(ordered) * 1e6) // 1_000_000) - 1))
    return ordered[rank]


SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90 and p99; zeros of none."""
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered) if ordered else 0.0
    return {"mean": mean, **{name: quantile(ordered, share) for name, share in SHARES.items()}}


def weighted(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The same of values that stand for so many each."""
    ordered = sorted(values)
    whole = sum(weight for _, weight in ordered)
    if whole <= 0:
        return percentiles([])
    found = {"mean": sum(value * weight for value, weight in ordered) / whole}
    below = list(accumulate(weight for _, weight in ordered))
    for name, share in SHARES.items():
        place = bisect_left(below, share * whole * (1 - 1e-9))
        found[name] = ordered[min(place, len(ordered) - 1)][0]
    return found


def ttft_s(one: Generation) -> float:
    """From its arrival to its first token."""
    return (one.last_s if one.first_s is None else one.first_s) - one.arrival_s


def tpot_s(one: Generation) -> float:
    """Of each token behind the first, moves and all."""
    first_s = one.last_s if one.first_s is None else one.first_s
    return (one.last_s - first_s) / max(1, one.output - 1)


def e2e_s(one: Generation) -> float:
    """From its arrival to its end."""
    return one.last_s - one.arrival_s


def within(one: Generation, targets: Targets) -> bool:
    """Both targets are met."""
    ttft, tpot = targets.ttft_s, targets.tpot_s
    return (ttft is None or ttft_s(one) <= ttft) and (tpot is None or tpot_s(one) <= tpot)
