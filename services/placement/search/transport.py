"""Prefill pipelines hand generations to decode pipelines: the transportation problem of rates.

Every request moves the KV cache of its prompt: each stage sends its own layers, so what a pipeline
can send or take is bounded by the stage whose network is least for the layers it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.estimate.roofline import Array
from services.placement.search.packing import maximise


def carried_rps(
    costs: Costs, pipelines: Sequence[PlacedPipeline], rates_rps: Sequence[float]
) -> float:
    """Requests a second that all pipelines carry together."""
    rates = np.asarray(rates_rps, dtype=float)
    whole = np.array([p.phase is PipelinePhase.BOTH for p in pipelines])
    prefill = [i for i, p in enumerate(pipelines) if p.phase is PipelinePhase.PREFILL]
    decode = [i for i, p in enumerate(pipelines) if p.phase is PipelinePhase.DECODE]
    total = float(rates[whole].sum()) if len(rates) else 0.0
    if prefill and decode:
        links = np.array([kv_rate(costs, p) for p in pipelines])
        flows = match(
            np.minimum(rates[prefill], links[prefill]),
            np.minimum(rates[decode], links[decode]),
            np.minimum.outer(links[prefill], links[decode]),
        )
        total += float(flows.sum())
    return total


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
