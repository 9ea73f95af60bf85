"""The best batch and layer split of one ordered pipeline: exact for batches of p or more.

Batches are taken by falling ceiling. A few thresholds on X then give each batch a split that is
reached and a closer ceiling; only batches that may still win are searched over every X.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.bounds import Terms, ceilings, least_sums, terms, thresholds
from services.placement.search.rates import Ints, RateTable

SEGMENTS = 6
SLACK = 1 + 1e-9
TOGETHER = 24


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and what the pipeline then carries."""

    rate_rps: float
    batch: int
    layers: tuple[int, ...]


def best_split(
    table: RateTable, order: tuple[int, ...], floor_rps: float = 0.0, tolerance: float = 1e-9
) -> Split | None:
    """The best split over all batches of the table, or None when none beats `floor_rps`.

    No split is better by more than `tolerance`, as a share.
    """
    at = np.arange(len(table.batches))[None, :]
    t = terms(table, np.asarray([order]), at, ordered=True)
    roof = ceilings(table, t, at)
    search = _Search(table, t, roof.least_x[0], roof.least_y[0], floor_rps, tolerance)
    ranked = np.argsort(-roof.rate[0], kind="stable")
    for i in range(0, len(ranked), TOGETHER):
        some = ranked[i : i + TOGETHER]
        some = some[roof.rate[0, some] > search.enough]
        if not len(some):
            break
        search.over(some)
    return search.best


class _Search:
    """The best split so far of one row of stages."""

    def __init__(
        self,
        table: RateTable,
        t: Terms,
        least_x: Array,
        least_y: Array,
        floor_rps: float,
        tolerance: float,
    ) -> None:
        self._table, self._t = table, t
        self._least_x, self._least_y = least_x, least_y
        self._floor, self._tolerance = floor_rps, tolerance
        self.best: Split | None = None

    @property
    def enough(self) -> float:
        """A ceiling at or below this cannot matter."""
        reached = self.best.rate_rps if self.best else self._floor
        return reached * (1 + self._tolerance)

    def over(self, some: Ints) -> None:
        """Looks at these batches."""
        wx, wy = self._table.weights
        if wx == 0 or wy == 0:
            for j in some:
                self._exactly(int(j))
            return
        closer = self._by_segments(some)
        for j, ceiling in sorted(zip(some, closer, strict=True), key=lambda pair: -pair[1]):
            if ceiling <= self.enough:
                break
            self._exactly(int(j))

    def _by_segments(self, some: Ints) -> Array:
        """Tries a few X for each batch; returns closer ceilings [batches]."""
        wx, wy = self._table.weights
        t, b = self._t, self._table.microbatch[some]
        terms_ = [a[0][:, some] for a in (t.prefill, t.prefill_fixed, t.decode, t.decode_fixed)]
        slope_x, fixed_x, slope_y, fixed_y = terms_
        most = t.most[0][:, some]
        low = self._least_x[some]
        high = (fixed_x + most * slope_x).max(axis=0)
        if self.enough > 0:
            high = np.minimum(high, (b / self.enough - wy * self._least_y[some]) / wx)
        high = np.maximum(high, low) * (1 + 1e-9)
        x = low + (high - low) * (np.linspace(0, 1, SEGMENTS + 1)[:, None] ** 1.5)  # [K, B]
        x[0] *= 1 + 1e-7
        caps = np.floor((x[:, None, :] - fixed_x) / slope_x)
        caps = np.clip(caps, 0, most).astype(np.int64)  # [K, stages, B]
        spread = (caps.shape[0], *slope_y.shape)
        below, above = thresholds(
            np.broadcast_to(slope_y, spread),
            np.broadcast_to(fixed_y, spread),
            caps,
            self._table.layers,
        )
        reached = wx * x + wy * above
        for k, i in zip(reached.argmin(axis=0), range(len(some)), strict=True):
            if np.isfinite(reached[k, i]) and b[i] / reached[k, i] > self.enough * (1 - 1e-3):
                held = np.floor((above[k, i] * SLACK - fixed_y[:, i]) / slope_y[:, i])
                layers = np.minimum(held, caps[k, :, i]).astype(np.int64)[None, :]
                self._take(int(some[i]), _trim(layers, t.at(0, int(some[i])), self._table)[0])
        bound = (wx * x[:-1] + wy * below[1:]).min(axis=0)
        closer: Array = b / bound
        return closer

    def _take(self, j: int, layers: Ints) -> None:
        if layers.sum() != self._table.layers:
            return
        batch = int(self._table.batches[j])
        rate = rate_of(self._table, self._t.at(0, j), layers, batch)
        if rate > (self.best.rate_rps if self.best else self._floor):
            self.best = Split(rate, batch, tuple(int(n) for n in layers))

    def _exactly(self, j: int) -> None:
        """Every X that a stage can reach at this batch."""
        wx, wy = self._table.weights
        t, b = self._t.at(0, j), float(self._table.microbatch[j])
        if self._table.batches[j] < self._table.stages:
            slope, fixed = (
                wx * t.prefill + wy * t.decode,
                wx * t.prefill_fixed + wy * t.decode_fixed,
            )
            room = t.most[:, None]
            summed = least_sums(slope[:, None], fixed[:, None], room, self._table.layers)
            if np.isfinite(summed[0][0]):
                self._take(j, summed[1][:, 0])
        least_x, least_y = float(self._least_x[j]), float(self._least_y[j])
        if not (np.isfinite(least_x) and np.isfinite(least_y)):
            return
        if wx == 0:
            candidates = (t.prefill_fixed + t.most * t.prefill).max(keepdims=True)
        elif wy == 0:
            candidates = np.array([least_x * (1 + 1e-6)])
        else:
            steps = np.arange(1, self._table.layers + 1)
            grid = t.prefill_fixed[:, None] + steps * t.prefill[:, None]
            allowed = grid[(steps <= t.most[:, None]) & (grid >= least_x * (1 - 1e-6))]
            if self.enough > 0:
                allowed = allowed[allowed <= (b / self.enough - wy * least_y) / wx * (1 + 1e-9)]
            candidates = np.unique(allowed)
        layers = _best_of(self._table, t, candidates) if len(candidates) else None
        if layers is not None:
            self._take(j, layers)


def rate_of(table: RateTable, t: Terms, layers: Ints, batch: int) -> float:
    """Requests a second of a split, as the estimator counts them."""
    wx, wy = table.weights
    prefill = t.prefill_fixed + layers * t.prefill
    decode = t.decode_fixed + layers * t.decode
    microbatches = min(len(layers), batch)
    x = max(float(prefill.sum()), microbatches * float(prefill.max()))
    y = max(float(decode.sum()), microbatches * float(decode.max()))
    return batch / (wx * x + wy * y)


def _best_of(table: RateTable, t: Terms, candidates: Array) -> Ints | None:
    """For each X the least Y; of all, the split with the least weighted sum."""
    wx, wy = table.weights
    within = np.floor((candidates[:, None] * SLACK - t.prefill_fixed) / t.prefill)
    caps = np.minimum(t.most, within).astype(np.int64)  # [X, stages]
    good = (caps.sum(axis=1) >= table.layers) & (caps.min(axis=1) >= 1)
    if not good.any():
        return None
    caps = caps[good].T  # [stages, X]
    spread = caps.shape
    slope = np.broadcast_to(t.decode[:, None], spread)
    fixed = np.broadcast_to(t.decode_fixed[:, None], spread)
    _, above = thresholds(slope, fixed, caps, table.layers)
    layers = np.minimum(np.floor((above * SLACK - fixed) / slope), caps).astype(np.int64).T
    layers = _trim(layers, t, table)
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
