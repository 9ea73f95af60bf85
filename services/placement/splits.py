"""The best batch and layer split of one ordered pipeline: exact for batches of p or more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.bounds import Terms, least_threshold, rate_bounds, terms
from services.placement.rates import Ints, RateTable
from services.placement.roofline import Array


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and what the pipeline then carries."""

    rate_rps: float
    batch: int
    layers: tuple[int, ...]


def best_split(table: RateTable, order: tuple[int, ...], floor_rps: float = 0.0) -> Split | None:
    """The best split over all batches of the table; None when none beats `floor_rps`."""
    at = np.arange(len(table.batches))[None, :]
    t = terms(table, np.asarray([order]), at, ordered=True)
    ceilings = rate_bounds(table, t, at, close=True)[0]
    best: Split | None = None
    for j in np.argsort(-ceilings, kind="stable"):
        reached = best.rate_rps if best else floor_rps
        if ceilings[j] <= reached * (1 + 1e-9) or ceilings[j] <= 0:
            break
        one = t.at(0, int(j))
        layers = _split_at(table, one, float(table.microbatch[j]), reached)
        if layers is None:
            continue
        rate = _rate(table, one, layers, int(table.batches[j]))
        if rate > reached:
            best = Split(rate, int(table.batches[j]), tuple(int(n) for n in layers))
    return best


def _rate(table: RateTable, t: Terms, layers: Ints, batch: int) -> float:
    """Requests a second of a split, as the estimator counts them."""
    wx, wy = table.weights
    prefill = t.prefill_fixed + layers * t.prefill
    decode = t.decode_fixed + layers * t.decode
    microbatches = min(len(layers), batch)
    x = max(float(prefill.sum()), microbatches * float(prefill.max()))
    y = max(float(decode.sum()), microbatches * float(decode.max()))
    return batch / (wx * x + wy * y)


def _split_at(table: RateTable, t: Terms, b: float, reached_rps: float) -> Ints | None:
    """The split with the least wX x X + wY x Y at one batch, if it can beat `reached_rps`."""
    wx, wy = table.weights
    least_x = _least(t.prefill, t.prefill_fixed, t.most, table.layers)
    least_y = _least(t.decode, t.decode_fixed, t.most, table.layers)
    limit = b / reached_rps if reached_rps > 0 else np.inf
    ends = t.prefill_fixed + t.most * t.prefill
    if wx == 0:
        candidates = np.array([ends.max()])
    elif wy == 0:
        candidates = np.array([least_x * (1 + 1e-6)])
    else:
        steps = np.arange(1, table.layers + 1)
        grid = t.prefill_fixed[:, None] + steps * t.prefill[:, None]
        allowed = grid[(steps <= t.most[:, None]) & (grid >= least_x * (1 - 1e-6))]
        most_x = (limit - wy * least_y) / wx
        candidates = np.unique(allowed[allowed <= most_x * (1 + 1e-9)])
    if not len(candidates):
        return None
    return _best_of(table, t, candidates)


def _least(slope: Array, fixed: Array, most: Ints, needed: int) -> float:
    low = least_threshold(slope[:, None], fixed[:, None], most[:, None], needed)
    return float(low[0])


def _best_of(table: RateTable, t: Terms, candidates: Array) -> Ints | None:
    """For each X the least Y; of all, the split with the least weighted sum."""
    wx, wy = table.weights
    slack = 1 + 1e-9
    within = np.floor((candidates[:, None] * slack - t.prefill_fixed) / t.prefill)
    caps = np.minimum(t.most, within)  # [X, stages]
    good = (caps.sum(axis=1) >= table.layers) & (caps.min(axis=1) >= 1)
    caps = caps[good]
    if not len(caps):
        return None
    low = np.zeros(len(caps))
    high = (t.decode_fixed + caps * t.decode).max(axis=1) * slack
    for _ in range(30):
        middle = (low + high) / 2
        held = np.floor((middle[:, None] - t.decode_fixed) / t.decode)
        enough = np.minimum(held, caps).sum(axis=1) >= table.layers
        enough &= held.min(axis=1) >= 1
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    layers = np.minimum(np.floor((high[:, None] - t.decode_fixed) / t.decode), caps)
    layers = _trim(layers.astype(np.int64), t, table)
    x = (t.prefill_fixed + layers * t.prefill).max(axis=1)
    y = (t.decode_fixed + layers * t.decode).max(axis=1)
    best: Ints = layers[int(np.argmin(wx * x + wy * y))]
    return best


def _trim(layers: Ints, t: Terms, table: RateTable) -> Ints:
    """Takes surplus layers from the stage that is slowest with them, which never costs time."""
    wx, wy = table.weights
    slope, fixed = wx * t.prefill + wy * t.decode, wx * t.prefill_fixed + wy * t.decode_fixed
    rows = np.arange(len(layers))
    while np.any(surplus := layers.sum(axis=1) > table.layers):
        time = np.where(layers > 1, fixed + layers * slope, -np.inf)
        slowest = time.argmax(axis=1)
        layers[rows[surplus], slowest[surplus]] -= 1
    return layers
