"""Prefill pipelines hand generations to decode pipelines: the transportation problem of rates.

Every request moves the KV cache of its prompt: each stage sends its own layers, so what a pipeline
can send or take is bounded by the stage whose network is least for the layers it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.estimate.roofline import Array
from services.placement.search.packing import maximise

EVEN = 1e-3
"""Of what a side could do, to which flows are even."""


@dataclass(frozen=True)
class Sides:
    """What split pipelines can hand on and take, in requests a second."""

    prefill: list[int]
    """Places of pipelines in their plan."""
    decode: list[int]
    supply: Array  # [prefill]
    demand: Array  # [decode]
    links: Array  # [prefill, decode]


def sides_of(
    costs: Costs, pipelines: Sequence[PlacedPipeline], rates_rps: Sequence[float]
) -> Sides:
    """Of those that do one phase; `rates_rps` of every pipeline."""
    rates = np.asarray(rates_rps, dtype=float)
    prefill = [i for i, p in enumerate(pipelines) if p.phase is PipelinePhase.PREFILL]
    decode = [i for i, p in enumerate(pipelines) if p.phase is PipelinePhase.DECODE]
    links = np.array([kv_rate(costs, p) for p in pipelines])
    return Sides(
        prefill,
        decode,
        np.minimum(rates[prefill], links[prefill]),
        np.minimum(rates[decode], links[decode]),
        np.minimum.outer(links[prefill], links[decode]),
    )


def carried_rps(
    costs: Costs, pipelines: Sequence[PlacedPipeline], rates_rps: Sequence[float]
) -> float:
    """Requests a second that all pipelines carry together."""
    whole = (p.phase is PipelinePhase.BOTH for p in pipelines)
    total = sum(rate for rate, one in zip(rates_rps, whole, strict=True) if one)
    phases = {pipeline.phase for pipeline in pipelines}
    if phases >= {PipelinePhase.PREFILL, PipelinePhase.DECODE}:
        sides = sides_of(costs, pipelines, rates_rps)
        total += float(match(sides.supply, sides.demand, sides.links).sum())
    return float(total)


def even_flows(sides: Sides) -> Array:
    """The flows [prefill, decode] of the greatest sum in which every prefill pipeline, and then
    every decode pipeline, does no more of what it could than the others have to."""
    most = match(sides.supply, sides.demand, sides.links).sum() * (1 - EVEN)
    supply, demand = sides.supply, sides.demand
    supply = supply * _least_share(lambda u: match(supply * u, demand, sides.links).sum(), most)
    demand = demand * _least_share(lambda u: match(supply, demand * u, sides.links).sum(), most)
    return match(supply, demand, sides.links)


def _least_share(carried: Callable[[float], float], most: float) -> float:
    """At which a side still carries the most, by halving."""
    low, high = 0.0, 1.0
    while high - low > EVEN:
        middle = (low + high) / 2
        low, high = (low, middle) if carried(middle) >= most else (middle, high)
    return high


def kv_rate(costs: Costs, pipeline: PlacedPipeline) -> float:
    """Requests a second whose prompt's KV cache the pipeline's network can move."""
    per_layer = costs.workload.input_tokens * costs.model.kv_bytes_per_token_layer
    return min(
        costs.of(stage.node.kind, stage.tp).network_bytes_per_s / (per_layer * stage.layers)
        for stage in pipeline.stages
    )


def match(supply: Array, demand: Array, links: Array) -> Array:
    """The flows [supply, demand] with the greatest sum within supply, demand and links."""
    m, n = len(supply), len(demand)
    rows = np.zeros((m + n, m * n))
    for i in range(m):
        rows[i, i * n : (i + 1) * n] = 1.0
    for j in range(n):
        rows[m + j, j::n] = 1.0
    flows = maximise(np.ones(m * n), rows, np.concatenate([supply, demand]), links.ravel())
    return flows.reshape(m, n)
