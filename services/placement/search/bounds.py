"""Upper bounds on the rate of many pipelines at once, by filling stages to a common time.

For a threshold Z each stage holds the layers whose time wX x prefill + wY x decode stays within
Z; the least Z that holds every layer bounds wX x X + wY x Y from below. So do the least X and the
least Y alone. Layers are whole and fit in memory, so the bound is tight where stages are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.rates import Ints, RateTable

BISECTIONS = 18


@dataclass(frozen=True)
class Terms:
    """Stage times of rows of stages, linear in layers; arrays are [rows, stages, batches]."""

    prefill: Array  # seconds a layer
    decode: Array
    prefill_fixed: Array  # hop, embedding, lm_head
    decode_fixed: Array
    most: Ints  # layers that leave room for the batch

    def at(self, row: int, batch: int) -> Terms:
        """One row at one batch: arrays are [stages]."""
        pick = (row, slice(None), batch)
        return Terms(
            self.prefill[pick],
            self.decode[pick],
            self.prefill_fixed[pick],
            self.decode_fixed[pick],
            self.most[pick],
        )


def terms(
    table: RateTable, rows: Ints, at: Ints, *, ordered: bool, room_at: Ints | None = None
) -> Terms:
    """Terms of rows [rows, stages] of options at batch indices `at` [rows, batches].

    The last column is the last stage. `ordered`: the row is the order of the pipeline. Else every
    other stage hops as fast as it can and holds no embedding: nothing in any order is better.
    `room_at` takes the room for layers at other (smaller) batches: time over b never rises with b,
    so the two together bound every batch between.
    """
    where = (rows[:, :, None], at[:, None, :])
    room = at if room_at is None else room_at

    def hops(rate: Array) -> tuple[Array, Array]:
        size = table.hop_prefill_bytes[at][:, None, :], table.hop_decode_bytes[at][:, None, :]
        prefill, decode = (part / rate[:, :, None] + table.hop_latency_s for part in size)
        return prefill, decode

    prefill, decode = table.prefill[where], table.decode[where]
    prefill_fixed, decode_fixed = np.zeros_like(prefill), np.zeros_like(decode)
    most = table.most[False, False][rows[:, :, None], room[:, None, :]]
    alone = rows.shape[1] == 1
    last = (rows[:, -1:], at)
    most[:, -1] = table.most[alone, True][rows[:, -1:], room]
    prefill_fixed[:, -1] = decode_fixed[:, -1] = table.head[last]
    if not alone:
        rate = table.network[rows[:, :-1]]
        if ordered:
            rate = np.minimum(rate, table.network[rows[:, 1:]])
            most[:, 0] = table.most[True, False][rows[:, :1], room]
        prefill_fixed[:, :-1], decode_fixed[:, :-1] = hops(rate)
    if ordered or alone:
        first = (rows[:, :1], at)
        prefill_fixed[:, 0] += table.embedding_prefill[first]
        decode_fixed[:, 0] += table.embedding_decode[first]
    return Terms(prefill, decode, prefill_fixed, decode_fixed, most)


def thresholds(slope: Array, fixed: Array, most: Ints, needed: Array | int) -> tuple[Array, Array]:
    """Least Z, from below and above, with sum(min(most, floor((Z - fixed)/slope))) >= needed.

    Every stage holds a layer at least. Arrays are [..., stages, batches]; the answers are
    [..., batches], infinite where nothing helps.
    """
    fits = (most.sum(axis=-2) >= needed) & (most.min(axis=-2) >= 1)
    pace, stages = 1 / slope, slope.shape[-2]
    idle = fixed * pace
    share, fluid = pace.sum(axis=-2), np.asarray(needed) + idle.sum(axis=-2)
    low = np.maximum((fixed + slope).max(axis=-2), fluid / share) * (1 - 1e-9)
    high = np.maximum((fixed + slope * np.maximum(most, 1)).max(axis=-2), low)
    room, held = most.astype(float), np.empty(idle.shape)
    # Where no stage is full, whole layers cost at most one a stage beside those of the fluid.
    middle = np.clip((fluid + stages) / share, low * (1 + 4e-9), high * (1 + 4e-9))
    for _ in range(BISECTIONS):  # the planners' hottest loop: nothing is allocated by stage
        np.multiply(middle[..., None, :], pace, out=held)
        np.subtract(held, idle, out=held)
        np.floor(held, out=held)
        np.minimum(held, room, out=held)
        enough = np.add.reduce(held, axis=-2) >= needed
        np.copyto(high, middle, where=enough)
        np.copyto(low, middle, where=~enough)
        middle = (low + high) / 2
    return np.where(fits, low, np.inf), np.where(fits, high, np.inf)


def least_threshold(slope: Array, fixed: Array, most: Ints, needed: Array | int) -> Array:
    """The lower of the two: nothing below it is enough."""
    return thresholds(slope, fixed, most, needed)[0]


def least_sums(slope: Array, fixed: Array, most: Ints, needed: int) -> tuple[Array, Ints]:
    """Least sum of the stages' times, and the layers that reach it: cheap layers first.

    Arrays are [..., stages, batches]; the sum is infinite where the layers do not fit.
    """
    order = np.argsort(slope, axis=-2, kind="stable")
    cheap = np.take_along_axis(slope, order, axis=-2)
    room = np.take_along_axis(most, order, axis=-2) - 1
    before = np.cumsum(room, axis=-2) - room
    left = needed - slope.shape[-2]
    taken = np.clip(left - before, 0, np.maximum(room, 0))
    total = (fixed + slope).sum(axis=-2) + (taken * cheap).sum(axis=-2)
    fits = (most.min(axis=-2) >= 1) & (most.sum(axis=-2) >= needed) & (left >= 0)
    layers = np.empty_like(most)
    np.put_along_axis(layers, order, taken + 1, axis=-2)
    return np.where(fits, total, np.inf), layers


@dataclass(frozen=True)
class Ceilings:
    """Upper bounds on requests a second, and the least X and Y they come from."""

    rate: Array
    least_x: Array
    least_y: Array


def ceilings(table: RateTable, t: Terms, at: Ints) -> Ceilings:
    """Bounds [rows, batches] from the least Z, and from the least X and Y apart."""
    wx, wy = table.weights
    needed = table.layers
    z = least_threshold(
        wx * t.prefill + wy * t.decode, wx * t.prefill_fixed + wy * t.decode_fixed, t.most, needed
    )
    x = least_threshold(t.prefill, t.prefill_fixed, t.most, needed) if wx else np.zeros_like(z)
    y = least_threshold(t.decode, t.decode_fixed, t.most, needed) if wy else np.zeros_like(z)
    rate = table.microbatch[at] / np.maximum(z, wx * x + wy * y)
    if np.any(table.batches[at] < table.stages):
        # Fewer sequences than stages: the fill of the pipeline counts, the sum of its stages.
        slope, fixed = wx * t.prefill + wy * t.decode, wx * t.prefill_fixed + wy * t.decode_fixed
        few = table.batches[at]
        summed = few / least_sums(slope, fixed, t.most, needed)[0]
        rate = np.where(few < table.stages, np.minimum(rate, summed), rate)
    return Ceilings(rate, x, y)


def rate_bounds(table: RateTable, t: Terms, at: Ints, *, close: bool) -> Array:
    """Upper bounds [rows, batches] on requests a second; `close` also bounds X and Y apart."""
    if close:
        return ceilings(table, t, at).rate
    wx, wy = table.weights
    z = least_threshold(
        wx * t.prefill + wy * t.decode,
        wx * t.prefill_fixed + wy * t.decode_fixed,
        t.most,
        table.layers,
    )
    rate: Array = table.microbatch[at] / z
    return rate


def partial_rates(table: RateTable, rows: Ints, at: Ints) -> Array:
    """A guide [rows, batches] for unfinished pipelines: the rate of the layers they hold, in
    proportion; for finished ones the bound."""
    wx, wy = table.weights
    t = terms(table, rows, at, ordered=False)
    slope = wx * t.prefill + wy * t.decode
    fixed = wx * t.prefill_fixed + wy * t.decode_fixed
    needed = np.minimum(table.layers, t.most.sum(axis=1))
    z = least_threshold(slope, fixed, t.most, needed)
    rate: Array = np.where(needed > 0, table.microbatch[at] / z * needed / table.layers, 0.0)
    return rate
