"""Upper bounds on the rate of many pipelines at once, by filling stages to a common time.

For a threshold Z each stage holds the layers whose time wX x prefill + wY x decode stays within
Z; the least Z that holds every layer bounds wX x X + wY x Y from below. So do the least X and the
least Y alone. Layers are whole and fit in memory, so the bound is tight where stages are alike.

Arrays have the stages first: sums over them are then sums of long rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.rates import Ints, RateTable

ROUNDS = 60
NEWTON_ROUNDS = 6
"""Rounds that follow Newton; the others halve what is left."""
TINY = 1e-300


@dataclass(frozen=True)
class Terms:
    """Stage times of rows of stages, linear in layers; arrays are [stages, rows, batches]."""

    prefill: Array  # seconds a layer
    decode: Array
    prefill_fixed: Array  # hop, embedding, lm_head
    decode_fixed: Array
    most: Ints  # layers that leave room for the batch

    def pick(self, places: Ints) -> Terms:
        """Some of the rows' batches, counted row by row: arrays are [stages, places]."""
        stages = len(self.most)

        def picked(times: Array) -> Array:
            return times.reshape(stages, -1).take(places, axis=1)

        return Terms(
            picked(self.prefill),
            picked(self.decode),
            picked(self.prefill_fixed),
            picked(self.decode_fixed),
            self.most.reshape(stages, -1).take(places, axis=1),
        )

    def weighted(self, weights: tuple[float, float]) -> tuple[Array, Array]:
        """Slope and fixed part of wX x prefill + wY x decode."""
        wx, wy = weights
        slope = wx * self.prefill + wy * self.decode
        return slope, wx * self.prefill_fixed + wy * self.decode_fixed


def terms(
    table: RateTable, rows: Ints, at: Ints, *, ordered: bool, room_at: Ints | None = None
) -> Terms:
    """Terms of rows [rows, stages] of options at batch indices `at` [rows, batches].

    The last column is the last stage. `ordered`: the row is the order of the pipeline. Else every
    other stage hops as fast as it can and holds no embedding: nothing in any order is better.
    `room_at` takes the room for layers at other (smaller) batches: time over b never rises with b,
    so the two together bound every batch between.
    """
    lines = np.ascontiguousarray(rows.T)[:, :, None]
    room = at if room_at is None else room_at

    def hops(rate: Array) -> tuple[Array, Array]:
        size = table.hop_prefill_bytes[at], table.hop_decode_bytes[at]
        prefill, decode = (part / rate + table.hop_latency_s for part in size)
        return prefill, decode

    prefill, decode = table.prefill[lines, at], table.decode[lines, at]
    prefill_fixed, decode_fixed = np.zeros_like(prefill), np.zeros_like(decode)
    most = table.most[False, False][lines, room]
    alone = len(lines) == 1
    most[-1] = table.most[alone, True][lines[-1], room]
    prefill_fixed[-1] = decode_fixed[-1] = table.head[lines[-1], at]
    if not alone:
        rate = table.network[lines[:-1]]
        if ordered:
            rate = np.minimum(rate, table.network[lines[1:]])
            most[0] = table.most[True, False][lines[0], room]
        prefill_fixed[:-1], decode_fixed[:-1] = hops(rate)
    if ordered or alone:
        prefill_fixed[0] += table.embedding_prefill[lines[0], at]
        decode_fixed[0] += table.embedding_decode[lines[0], at]
    return Terms(prefill, decode, prefill_fixed, decode_fixed, most)


def thresholds(slope: Array, fixed: Array, most: Ints, needed: Array | int) -> tuple[Array, Array]:
    """Least Z, from below and above, with sum(min(most, floor((Z - fixed)/slope))) >= needed.

    Every stage holds a layer at least. Arrays are [stages, ...]; the answers are [...], infinite
    where nothing helps, and equal unless ROUNDS were not enough.

    The layers held grow by steps, at the times fixed + k x slope. A guess that lands next to the
    step which is sought finds it; the others move on by what the layers that lack would take at
    the pace of the stages that are not full (Newton).
    """
    stages, shape = len(slope), slope.shape[1:]
    fits = (most.sum(axis=0) >= needed) & (most.min(axis=0) >= 1)
    below, above = np.full(fits.size, np.inf), np.full(fits.size, np.inf)
    open_ = np.flatnonzero(fits)
    if not len(open_):
        return below.reshape(shape), above.reshape(shape)
    pace = 1 / slope
    known = np.stack([slope, fixed, most, pace, fixed * pace]).reshape(5, stages, -1)
    wanted = np.broadcast_to(needed, shape).ravel() - 0.5
    if len(open_) < len(wanted):
        known, wanted = known.take(open_, axis=2), wanted[open_]
    slope, fixed, room, pace, idle = known
    least = (fixed + slope).max(axis=0)
    share, fluid = pace.sum(axis=0), wanted + idle.sum(axis=0)
    low = np.maximum(least, fluid / share)
    high = np.maximum((fixed + slope * room).max(axis=0), least)
    # Where no stage is full, each has half a layer begun in the middle.
    guess = np.clip((fluid + stages / 2) / share, low, high)
    for turn in range(ROUNDS):  # the planners' hottest loop
        held = np.minimum(np.floor(guess * pace - idle), room)
        layers = held.sum(axis=0)
        short = layers < wanted
        free = held < room
        # The next step where layers are short, else the last one.
        step = fixed + slope * (held + short)
        step[short & ~free] = np.inf
        edge = np.where(short, step.min(axis=0), step.max(axis=0))
        there = (step == edge).sum(axis=0)
        layers = np.where(short, layers + there, layers - there)
        found = (short == (layers > wanted)) | (~short & (edge <= least))
        np.copyto(low, edge, where=short | found)
        np.copyto(high, edge, where=~short | found)
        if found.any():
            at = open_[found]
            below[at] = above[at] = np.maximum(edge, least)[found]
            left = np.flatnonzero(~found)
            if not len(left):
                break
            open_ = open_[left]
            known, free = known.take(left, axis=2), free.take(left, axis=1)
            wanted, least, low, high = wanted[left], least[left], low[left], high[left]
            edge, layers = edge[left], layers[left]
            slope, fixed, room, pace, idle = known
        share = (pace * free).sum(axis=0)
        guess = edge + (wanted - layers) / np.maximum(share, TINY)
        inside = (guess > low) & (guess < high) & (turn < NEWTON_ROUNDS)
        guess = np.where(inside, guess, (low + high) / 2)
    else:
        below[open_], above[open_] = low, high
    return below.reshape(shape), above.reshape(shape)


def least_threshold(slope: Array, fixed: Array, most: Ints, needed: Array | int) -> Array:
    """The lower of the two: nothing below it is enough."""
    return thresholds(slope, fixed, most, needed)[0]


def least_sums(slope: Array, fixed: Array, most: Ints, needed: int) -> tuple[Array, Ints]:
    """Least sum of the stages' times, and the layers that reach it: cheap layers first.

    Arrays are [stages, ...]; the sum is infinite where the layers do not fit.
    """
    order = np.argsort(slope, axis=0, kind="stable")
    cheap = np.take_along_axis(slope, order, axis=0)
    room = np.take_along_axis(most, order, axis=0) - 1
    before = np.cumsum(room, axis=0) - room
    left = needed - len(slope)
    taken = np.clip(left - before, 0, np.maximum(room, 0))
    total = (fixed + slope).sum(axis=0) + (taken * cheap).sum(axis=0)
    fits = (most.min(axis=0) >= 1) & (most.sum(axis=0) >= needed) & (left >= 0)
    layers = np.empty_like(most)
    np.put_along_axis(layers, order, taken + 1, axis=0)
    return np.where(fits, total, np.inf), layers


@dataclass(frozen=True)
class Ceilings:
    """Upper bounds on requests a second, and the least X and Y they come from."""

    rate: Array
    least_x: Array
    least_y: Array


def ceilings(table: RateTable, t: Terms, at: Ints, over: float = 0.0) -> Ceilings:
    """Bounds [rows, batches] from the least Z; where they exceed `over`, from the least X and Y
    apart as well."""
    wx, wy = table.weights
    needed = table.layers
    slope, fixed = t.weighted(table.weights)
    z = least_threshold(slope, fixed, t.most, needed)
    rate = table.microbatch[at] / z
    places = np.flatnonzero(rate > over)
    near = t.pick(places)
    x, y = np.zeros(z.shape), np.zeros(z.shape)
    if wx:
        x.flat[places] = least_threshold(near.prefill, near.prefill_fixed, near.most, needed)
    if wy:
        y.flat[places] = least_threshold(near.decode, near.decode_fixed, near.most, needed)
    rate = table.microbatch[at] / np.maximum(z, wx * x + wy * y)
    few = table.batches[at]
    if np.any(few < table.stages):
        # Fewer sequences than stages: the fill of the pipeline counts, the sum of its stages.
        summed = few / least_sums(slope, fixed, t.most, needed)[0]
        rate = np.where(few < table.stages, np.minimum(rate, summed), rate)
    return Ceilings(rate, x, y)


def rate_bounds(table: RateTable, t: Terms, at: Ints, *, close: bool) -> Array:
    """Upper bounds [rows, batches] on requests a second; `close` also bounds X and Y apart."""
    return ceilings(table, t, at, 0.0 if close else np.inf).rate


def partial_rates(table: RateTable, rows: Ints, at: Ints) -> Array:
    """A guide [rows, batches] for unfinished pipelines: the rate of the layers they hold, in
    proportion; for finished ones the bound."""
    t = terms(table, rows, at, ordered=False)
    slope, fixed = t.weighted(table.weights)
    needed = np.minimum(table.layers, t.most.sum(axis=0))
    z = least_threshold(slope, fixed, t.most, needed)
    rate: Array = np.where(needed > 0, table.microbatch[at] / z * needed / table.layers, 0.0)
    return rate
