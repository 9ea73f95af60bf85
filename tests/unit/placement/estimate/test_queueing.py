"""Times of a pipeline at a rate, beyond which there are none."""

from __future__ import annotations

import math

import pytest

from services.common.phases import PipelinePhase
from services.placement.estimate.estimator import StageTimes
from services.placement.estimate.queueing import Load, at_rate

BOTH, PREFILL, DECODE = PipelinePhase.BOTH, PipelinePhase.PREFILL, PipelinePhase.DECODE


def load(rate_rps: float, phase: PipelinePhase, link_s: float) -> Load:
    """Of one stage that reads a prompt in 10 ms and decodes a row in 1 ms, 100 requests a second
    at most."""
    times = StageTimes((0.01,), (0.001,))
    return at_rate(lambda b: times, 64, 100.0, 100, rate_rps, phase, link_s)


@pytest.mark.parametrize("phase", [PREFILL, DECODE])
def test_a_pipeline_whose_link_is_full_is_past_saturation(phase: PipelinePhase) -> None:
    """Whoever sends KV cache waits for its link as who takes it does."""
    below, above = (load(rate, phase, link_s=0.05) for rate in (19.0, 20.0))
    assert math.isfinite(below.end_to_end_s)
    assert (above.ttft_s, above.tpot_s, above.end_to_end_s) == (math.inf,) * 3


def test_who_does_both_sends_nothing() -> None:
    assert load(50.0, BOTH, link_s=1.0) == load(50.0, BOTH, link_s=0.0)
