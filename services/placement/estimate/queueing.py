"""TTFT, TPOT and end-to-end time of a pipeline at a given arrival rate.

The running batch follows Little's law; prefills take their share of every step; a request waits
for the prefill server (M/D/1) and for a free slot (Sakasegawa's approximation of M/M/c). A pipeline
of one phase has that phase's part of a request's times, so those of both kinds add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.phases import PipelinePhase

ROUNDS = 60


class Times(Protocol):
    @property
    def prefill_s(self) -> tuple[float, ...]: ...
    @property
    def decode_s(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Load:
    """Mean times of a request, in seconds; infinite past saturation."""

    ttft_s: float
    tpot_s: float
    end_to_end_s: float


def at_rate(
    times_of: Callable[[float], Times],
    batch: int,
    throughput_rps: float,
    output_tokens: int,
    rate_rps: float,
    phase: PipelinePhase = PipelinePhase.BOTH,
    link_s: float = 0.0,
) -> Load:
    """Load at `rate_rps` requests a second; `times_of(b)` are a microbatch's stage times. Between
    phases each request's KV cache keeps the pipeline's link busy for `link_s`: it follows its
    prompt, so who decodes waits for those before it (M/D/1), and no link takes more than it has
    time for."""
    alone = times_of(1.0)
    reads, decodes = phase is not PipelinePhase.DECODE, phase is not PipelinePhase.PREFILL
    prefill_alone, stages = sum(alone.prefill_s) if reads else 0.0, len(alone.prefill_s)
    if rate_rps <= 0:
        tpot = sum(alone.decode_s) if decodes else 0.0
        return Load(prefill_alone, tpot, prefill_alone + output_tokens * tpot)
    utilisation = rate_rps / throughput_rps
    link = rate_rps * link_s if phase is not PipelinePhase.BOTH else 0.0
    if utilisation >= 1 or link >= 1:
        return Load(math.inf, math.inf, math.inf)
    busy = min(rate_rps * max(alone.prefill_s), 0.999) if reads else 0.0
    prefill_wait = busy * max(alone.prefill_s) / (2 * (1 - busy))
    if not decodes:
        ttft = prefill_wait + prefill_alone
        return Load(ttft, 0.0, ttft)
    running, tpot = 1.0, sum(alone.decode_s)
    for _ in range(ROUNDS):
        step = times_of(max(running / stages, 1.0 / stages)).decode_s
        tpot = max(sum(step), stages * max(step)) / (1 - busy)
        target = min(float(batch), max(1.0, rate_rps * output_tokens * tpot))
        if abs(target - running) < 1e-6 * running:
            break
        running = (running + target) / 2
    service = prefill_alone / (1 - busy) + output_tokens * tpot
    slot_wait = utilisation ** math.sqrt(2 * (batch + 1)) / (batch * (1 - utilisation)) * service
    if not reads:
        tpot += link * link_s / (2 * (1 - link)) / output_tokens
    first = prefill_wait + slot_wait + prefill_alone / (1 - busy)
    return Load(first if reads else 0.0, tpot, first + output_tokens * tpot)


def mean(loads: Sequence[Load], shares: Sequence[float]) -> Load:
    """Mean over requests."""
    return Load(
        sum(load.ttft_s * share for load, share in zip(loads, shares, strict=True)),
        sum(load.tpot_s * share for load, share in zip(loads, shares, strict=True)),
        sum(load.end_to_end_s * share for load, share in zip(loads, shares, strict=True)),
    )
