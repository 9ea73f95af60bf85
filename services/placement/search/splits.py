"""The best batch and layer split of ordered pipelines: exact for batches of p or more.

Orders and batches are taken together by falling ceiling. A few thresholds on X then give each a
split that is reached and a closer ceiling; only those that may still win are searched over every X.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.bounds import Terms, ceilings, least_sums, terms, thresholds
from services.placement.search.rates import Ints, RateTable

SEGMENTS = 6
SLACK = 1 + 1e-9
FIRST = 24
"""Batches looked at before the first is known that the others have to beat."""
TOGETHER = 256


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and what the pipeline then carries."""

    rate_rps: float
    batch: int
    layers: tuple[int, ...]


def best_split(
    table: RateTable, orders: Ints, floor_rps: float = 0.0, tolerance: float = 1e-9
) -> tuple[int, Split] | None:
    """The best split over all batches of the table and the orders [rows, stages], with its row;
    None when none beats `floor_rps`.

    No split is better by more than `tolerance`, as a share.
    """
    at = np.broadcast_to(np.arange(len(table.batches)), (len(orders), len(table.batches)))
    t = terms(table, orders, at, ordered=True)
    search = _Search(table, t, at, floor_rps, tolerance)
    start, size = 0, FIRST
    while start < len(search.ranked):
        some = search.ranked[start : start + size]
        some = some[search.ceiling[some] > search.enough]
        if not len(some):
            break
        search.over(some)
        start, size = start + size, TOGETHER
    if search.best is None:
        return None
    return search.place // len(table.batches), search.best


class _Search:
    """The best split so far of some orders; an order at a batch is a place."""

    def __init__(
        self, table: RateTable, t: Terms, at: Ints, floor_rps: float, tolerance: float
    ) -> None:
        self._table, self._t = table, t
        self._floor, self._tolerance = floor_rps, tolerance
        self.best: Split | None = None
        self.place = 0
        roof = ceilings(table, t, at, over=self.enough)
        self.ceiling = roof.rate.ravel()
        self._least_x, self._least_y = roof.least_x.ravel(), roof.least_y.ravel()
        self._batch, self._microbatch = table.batches[at].ravel(), table.microbatch[at].ravel()
        self.ranked = np.argsort(-self.ceiling, kind="stable")

    @property
    def enough(self) -> float:
        """A ceiling at or below this cannot matter."""
        reached = self.best.rate_rps if self.best else self._floor
        return reached * (1 + self._tolerance)

    def over(self, some: Ints) -> None:
        """Looks at these places."""
        wx, wy = self._table.weights
        if wx and wy:
            closer = self._by_segments(some)
            ranked = np.argsort(-closer, kind="stable")
            some, closer = some[ranked], closer[ranked]
            # The best of them first: the others have to beat it.
            self._exactly(some[:1][closer[:1] > self.enough])
            some = some[1:][closer[1:] > self.enough]
        self._exactly(some)

    def _by_segments(self, some: Ints) -> Array:
        """Tries a few X for each place; returns closer ceilings [places]."""
        wx, wy = self._table.weights
        t, b = self._t.pick(some), self._microbatch[some]
        low = self._least_x[some]
        high = (t.prefill_fixed + t.most * t.prefill).max(axis=0)
        if self.enough > 0:
            high = np.minimum(high, (b / self.enough - wy * self._least_y[some]) / wx)
        high = np.maximum(high, low) * (1 + 1e-9)
        x = low + (high - low) * (np.linspace(0, 1, SEGMENTS + 1)[:, None] ** 1.5)  # [X, places]
        caps = _within(x, t.prefill[:, None], t.prefill_fixed[:, None], t.most[:, None])
        below, above = thresholds(
            np.broadcast_to(t.decode[:, None], caps.shape),
            np.broadcast_to(t.decode_fixed[:, None], caps.shape),
            caps,
            self._table.layers,
        )
        reached = wx * x + wy * above
        best = reached.argmin(axis=0)[None]
        reached, y = (np.take_along_axis(a, best, axis=0)[0] for a in (reached, above))
        near = np.flatnonzero(b > self.enough * (1 - 1e-3) * reached)
        caps = np.take_along_axis(caps, best[None], axis=1)[:, 0]
        self._take(some[near], _filled(t.pick(near), caps[:, near], y[near]))
        closer: Array = b / (wx * x[:-1] + wy * below[1:]).min(axis=0)
        return closer

    def _exactly(self, some: Ints) -> None:
        """Every X that a stage can reach at these places."""
        wx, wy = self._table.weights
        few = some[self._batch[some] < self._table.stages]
        if len(few):
            t = self._t.pick(few)
            slope, fixed = t.weighted(self._table.weights)
            total, layers = least_sums(slope, fixed, t.most, self._table.layers)
            holds = np.isfinite(total)
            self._take(few[holds], layers[:, holds])
        some = some[np.isfinite(self._least_x[some]) & np.isfinite(self._least_y[some])]
        t, least_x = self._t.pick(some), self._least_x[some]
        if wx == 0:
            x = (t.prefill_fixed + t.most * t.prefill).max(axis=0)
            chosen = np.arange(len(some))
        elif wy == 0:
            x, chosen = least_x * SLACK, np.arange(len(some))
        else:
            most_x = np.full(len(some), np.inf)
            if self.enough > 0:
                spent = wy * self._least_y[some]
                most_x = (self._microbatch[some] / self.enough - spent) / wx * SLACK
            x, chosen = _steps(t, least_x / SLACK, most_x, self._table.layers)
        if len(chosen):
            self._over_x(some[chosen], x)

    def _over_x(self, places: Ints, x: Array) -> None:
        """For each X the least Y at its place."""
        t = self._t.pick(places)
        caps = _within(x, t.prefill, t.prefill_fixed, t.most)
        _, y = thresholds(t.decode, t.decode_fixed, caps, self._table.layers)
        holds = np.isfinite(y)
        layers = _filled(t.pick(holds.nonzero()[0]), caps[:, holds], y[holds])
        self._take(places[holds], layers)

    def _take(self, places: Ints, layers: Ints) -> None:
        """The best of these splits [stages, places], if it beats what there is."""
        if not len(places):
            return
        t = self._t.pick(places)
        _trim(layers, t, self._table)
        rates = rates_of(self._table, t, layers, self._batch[places])
        rates[layers.sum(axis=0) != self._table.layers] = 0.0
        i = int(rates.argmax())
        if rates[i] > (self.best.rate_rps if self.best else self._floor):
            self.place = int(places[i])
            held = tuple(int(n) for n in layers[:, i])
            self.best = Split(float(rates[i]), int(self._batch[self.place]), held)


def rates_of(table: RateTable, t: Terms, layers: Ints, batches: Ints) -> Array:
    """Requests a second of splits [stages, splits], as the estimator counts them."""
    wx, wy = table.weights
    microbatches = np.minimum(len(layers), batches)

    def slowest(times: Array) -> Array:
        found: Array = np.maximum(times.sum(axis=0), microbatches * times.max(axis=0))
        return found

    x = slowest(t.prefill_fixed + layers * t.prefill)
    y = slowest(t.decode_fixed + layers * t.decode)
    rates: Array = batches / (wx * x + wy * y)
    return rates


def _within(time: Array, slope: Array, fixed: Array, most: Ints) -> Ints:
    """The layers that each stage does in a time."""
    layers: Ints = np.clip(np.floor((time * SLACK - fixed) / slope), 0, most).astype(np.int64)
    return layers


def _filled(t: Terms, caps: Ints, y: Array) -> Ints:
    """The layers that each stage decodes within Y, at most its cap."""
    return _within(y, t.decode, t.decode_fixed, caps)


def _steps(t: Terms, low: Array, high: Array, layers: int) -> tuple[Array, Ints]:
    """Every prefill time of a stage with some layers within [low, high], each once, and the place
    it belongs to."""
    count = np.arange(1, layers + 1)[:, None, None]
    grid = t.prefill_fixed + count * t.prefill  # [layers, stages, places]
    chosen = np.nonzero((count <= t.most) & (grid >= low) & (grid <= high))
    x, place = grid[chosen], chosen[2]
    order = np.lexsort((x, place))
    x, place = x[order], place[order]
    fresh = np.ones(len(x), dtype=bool)
    fresh[1:] = (x[1:] != x[:-1]) | (place[1:] != place[:-1])
    return x[fresh], place[fresh]


def _trim(layers: Ints, t: Terms, table: RateTable) -> None:
    """Takes surplus layers from the stage that is slowest with them, which never costs time."""
    slope, fixed = t.weighted(table.weights)
    while len(surplus := np.flatnonzero(layers.sum(axis=0) > table.layers)):
        held = layers[:, surplus]
        time = np.where(held > 1, fixed[:, surplus] + held * slope[:, surplus], -np.inf)
        layers[time.argmax(axis=0), surplus] -= 1
