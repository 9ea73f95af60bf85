"""All experiments, in the order in which they are run."""

from __future__ import annotations

from experiments import beam_width, estimator, placement, spot_tolerance

EXPERIMENTS = (
    placement.EXPERIMENT,
    beam_width.EXPERIMENT,
    estimator.EXPERIMENT,
    spot_tolerance.EXPERIMENT,
)
