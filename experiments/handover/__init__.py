"""256 generations of 70B that a plan's turn hands over at once over 10 Gbps: what readers wait."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import quantiles

from bench.placement import costs_of
from experiments.experiment import Experiment, Size
from experiments.experiment import Ground as Run
from experiments.table import Cell, Column, Rows
from services.engine.backend import BLOCK_SIZE
from services.engine.block_moves import AHEAD_BYTES
from services.placement.command.clusterfile import parse_pipeline
from services.placement.estimate.estimator import stage_costs
from simulator.handover import Ground, HandedOver, drawn, go_ahead, hand_over

FOLDER = Path(__file__).parent
MODEL, PIPELINE = "llama-3.1-70b", "g6e.12xlarge:40,g6e.12xlarge:40"
STREAMS = {Size.TINY: 32, Size.QUICK: 256, Size.FULL: 256}
PROMPTS, ANSWERS = (762.8, 0.583), (232.4, 0.709)
"""As in the other experiments of this model."""
AHEAD_SHARE = 0.5
"""An engine's default."""
CALLS = 6
"""Of a round: to stages and heirs, there and back."""
SEED = 7
COLUMNS = (
    Column("sealed after s", ".1f"),
    Column("ended", ".0f"),
    Column("pushed", ".0f"),
    Column("replayed", ".0f"),
    Column("GB ahead", ".2f"),
    Column("GB behind", ".2f"),
    Column("computed", ".0f"),
    Column("gap p50 s", ".2f"),
    Column("gap p99 s", ".2f"),
    Column("longest gap s", ".2f"),
    Column("of replay's", ".2f"),
)


WAYS = ("replay", "kv", "auto")
GROUNDS = (
    (10.0, 10.0, 60.0),
    (10.0, 10.0, 20.0),
    (10.0, 10.0, 5.0),
    (10.0, 60.0, 60.0),
    (10.0, 240.0, 60.0),
    (50.0, 10.0, 60.0),
)
"""Gbps of the link; for how long blocks go ahead at most, and are fetched behind the seal. First
stand the defaults of a controller."""


def ground_of(streams: int, fetch_s: float) -> Ground:
    """Of two nodes of four L40S each, by the calibration that is fitted to measured layers."""
    costs = costs_of(MODEL, "measured")
    placed = parse_pipeline(PIPELINE, costs.catalogue)
    stages = stage_costs(costs, placed.stages)
    batch = streams / len(stages)  # as many microbatches as stages
    layers = [stage.layers for stage in placed.stages]
    decode = [
        float(cost.decode_layer_s(batch)) * count + float(cost.hop_s(batch, False, 1e12))
        for cost, count in zip(stages, layers, strict=True)
    ]
    prefill = [
        float(cost.prefill_layer_s(1.0)) * count for cost, count in zip(stages, layers, strict=True)
    ]
    model = costs.model
    position = 2 * 2 * model.kv_heads * model.head_dim * model.layers
    return Ground(
        block_bytes=BLOCK_SIZE * position,
        link_bytes_per_s=10e9 / 8,
        step_s=sum(decode),
        prefill_positions_per_s=costs.workload.input_tokens / max(prefill),
        call_s=CALLS * costs.calibration.network.hop_latency_us * 1e-6,
        round_bytes=AHEAD_BYTES,
        ahead_share=AHEAD_SHARE,
        fetch_s=fetch_s,
    )


def measure(run: Run) -> Rows:
    """All have the same generations; those of one link and time are sealed at the same moment."""
    count, rows = STREAMS[run.size], Rows()
    for gbps, limit_s, fetch_s in GROUNDS:
        ground = replace(ground_of(count, fetch_s), link_bytes_per_s=gbps * 1e9 / 8)
        running = drawn(Random(SEED), count, PROMPTS, ANSWERS)
        took_s, over = go_ahead(running, ground, limit_s)
        found = {way: hand_over(running, over, ground, way) for way in WAYS}
        for way, one in found.items():
            name = f"{gbps:g} Gbps, {limit_s:g} s ahead, {fetch_s:g} s behind, {way}"
            rows[name] = _cells(took_s, one, found["replay"])
    return rows


def _cells(sealed_s: float, found: HandedOver, replay: HandedOver) -> dict[str, Cell]:
    shares = quantiles(found.gaps_s, n=100, method="inclusive")
    return {
        "sealed after s": sealed_s,
        "ended": found.ended,
        "pushed": found.pushed,
        "replayed": found.replayed,
        "GB ahead": found.ahead_bytes / 1e9,
        "GB behind": found.behind_bytes / 1e9,
        "computed": found.computed_positions,
        "gap p50 s": shares[49],
        "gap p99 s": shares[98],
        "longest gap s": found.gaps_s[-1],
        "of replay's": found.gaps_s[-1] / replay.gaps_s[-1],
    }


EXPERIMENT = Experiment(
    FOLDER.name,
    "Longest gap of 256 generations of 70B that are handed over at once",
    COLUMNS,
    measure,
    "longest gap s",
)
