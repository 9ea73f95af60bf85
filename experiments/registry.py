"""All experiments, in the order in which they are run."""

from __future__ import annotations

from experiments import (
    beam_width,
    cost,
    equal_budget,
    estimator,
    handover,
    placement,
    scale,
    shifts,
    spot_tolerance,
    spotserve,
    starts,
)

EXPERIMENTS = (
    placement.EXPERIMENT,
    beam_width.EXPERIMENT,
    estimator.EXPERIMENT,
    spot_tolerance.EXPERIMENT,
    starts.EXPERIMENT,
    handover.EXPERIMENT,
    spotserve.EXPERIMENT,
    cost.EXPERIMENT,
    equal_budget.EXPERIMENT,
    shifts.EXPERIMENT,
    scale.EXPERIMENT,
)
