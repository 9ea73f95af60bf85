"""Lines through what was measured, with no cost below zero, in which what is far off weighs less.

Sources: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23; Huber, Robust
Estimation of a Location Parameter, Annals of Mathematical Statistics, 1964 (reweighted: Holland and
Welsch, Communications in Statistics, 1977).
"""

from __future__ import annotations

import numpy as np

HUBER, NORMAL = 1.345, 0.6745
"""Rows within so many standard deviations count in full, of which the median of the absolute
differences is this share."""
MEDIAN = 0.01
"""In the place of HUBER: nearly the least sum of absolute differences, so the line of medians."""
REWEIGHTS = 20
LEAST = 1e-9


def line(
    columns: np.ndarray, values: np.ndarray, within: float = HUBER
) -> tuple[np.ndarray, float]:
    """Costs of the columns ([rows, costs] times [costs] is about `values`), and the sum of Huber's
    losses of what they leave, in square units."""
    from scipy.optimize import nnls

    scale = np.maximum(np.abs(columns).max(axis=0), LEAST)
    scaled = columns / scale
    weights = np.ones(len(values))
    for _ in range(REWEIGHTS):
        costs = nnls(scaled * weights[:, None], values * weights)[0]
        off = np.abs(scaled @ costs - values)
        near = max(within * float(np.median(off)) / NORMAL, LEAST)
        weights = np.sqrt(near / np.maximum(off, near))
    losses = np.where(off <= near, off * off, 2 * near * off - near * near)
    return costs / scale, float(losses.sum())
