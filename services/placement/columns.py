"""Candidate pipelines: multisets of stage options, their bounds, their best order and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from services.placement.bounds import partial_rates, rate_bounds, terms
from services.placement.rates import Ints, Option, RateTable, RateTables
from services.placement.roofline import Array
from services.placement.splits import Split, best_split

COARSE = 20
CHUNK_ELEMENTS = 1 << 21
Members = tuple[int, ...]  # options, ascending


@dataclass(frozen=True)
class Candidate:
    """A pipeline in order with its split."""

    order: Members
    split: Split


class Columns:
    """Bounds and best splits of multisets of options, each computed once."""

    def __init__(self, tables: RateTables) -> None:
        self.tables = tables
        self._solved: dict[Members, Candidate | None] = {}
        best = np.argsort([-1.0 / o.cost.network_bytes_per_s for o in tables.options])
        self._by_network = {int(o): rank for rank, o in enumerate(best[::-1])}

    @property
    def options(self) -> tuple[Option, ...]:
        return self.tables.options

    def _coarse(self) -> Ints:
        count = len(self.tables.batches)
        return np.unique(np.geomspace(1, count, COARSE).astype(np.int64)) - 1

    def guides(self, rows: Ints) -> Array:
        """Guides [rows] for unfinished pipelines, coarse in the batch."""
        table, at = self.tables.of(rows.shape[1]), self._coarse()[None, :]
        return self._chunked(
            rows, at.shape[1], lambda part: partial_rates(table, part, _spread(at, part))
        ).max(axis=1)

    def bounds(self, rows: Ints, *, dense: bool) -> Array:
        """Upper bounds [rows] of multisets over all orders and batches.

        `dense` looks at every batch and is a true bound; else a coarse grid is refined around its
        best batch.
        """
        out = np.zeros(len(rows))
        for last in range(rows.shape[1]):
            changed = np.ones(len(rows), dtype=bool)
            if last:
                changed = rows[:, last] != rows[:, last - 1]
            if changed.any():
                moved = np.concatenate(
                    [np.delete(rows[changed], last, axis=1), rows[changed, last : last + 1]], axis=1
                )
                out[changed] = np.maximum(out[changed], self._bounds_with_last(moved, dense))
        return out

    def _bounds_with_last(self, rows: Ints, dense: bool) -> Array:
        table = self.tables.of(rows.shape[1])
        everything = np.arange(len(table.batches))[None, :]
        if dense or len(table.batches) <= 2 * COARSE:
            return self._ceilings(table, rows, everything).max(axis=1)
        coarse = self._coarse()
        rough = self._ceilings(table, rows, coarse[None, :])
        best = rough.argmax(axis=1)
        low = coarse[np.maximum(best - 1, 0)]
        high = coarse[np.minimum(best + 1, len(coarse) - 1)]
        steps = np.linspace(0, 1, COARSE)
        fine = np.rint(low[:, None] + (high - low)[:, None] * steps).astype(np.int64)
        return np.maximum(rough.max(axis=1), self._ceilings(table, rows, fine).max(axis=1))

    def _ceilings(self, table: RateTable, rows: Ints, at: Ints) -> Array:
        def part(chunk: Ints, where: Ints) -> Array:
            t = terms(table, chunk, where, ordered=False)
            return rate_bounds(table, t, where, close=True)

        size = max(1, CHUNK_ELEMENTS // (rows.shape[1] * at.shape[1]))
        spread = np.broadcast_to(at, (len(rows), at.shape[1]))
        pieces = [part(rows[i : i + size], spread[i : i + size]) for i in range(0, len(rows), size)]
        return np.concatenate(pieces)

    def _chunked(self, rows: Ints, width: int, work: Callable[[Ints], Array]) -> Array:
        size = max(1, CHUNK_ELEMENTS // (rows.shape[1] * width))
        return np.concatenate([work(rows[i : i + size]) for i in range(0, len(rows), size)])

    def solve(self, members: Members) -> Candidate | None:
        """A very good order with its best split: every head and tail, the others by network."""
        if members not in self._solved:
            self._solved[members] = self.best_of(set(self._orders(members)))
        return self._solved[members]

    def _orders(self, members: Members) -> Iterator[Members]:
        if len(members) == 1:
            yield members
            return
        for head in set(members):
            rest = list(members)
            rest.remove(head)
            for tail in set(rest):
                middle = list(rest)
                middle.remove(tail)
                middle.sort(key=lambda o: self._by_network[o])
                yield (head, *middle, tail)

    def best_of(self, orders: Iterable[Members], floor_rps: float = 0.0) -> Candidate | None:
        """The best split over these orders of one multiset, if any beats `floor_rps`."""
        rows = np.asarray(sorted(orders))
        table = self.tables.of(rows.shape[1])
        at = np.broadcast_to(self._coarse(), (len(rows), len(self._coarse())))
        ceilings = rate_bounds(table, terms(table, rows, at, ordered=True), at, close=False)
        best: Candidate | None = None
        for i in np.argsort(-ceilings.max(axis=1), kind="stable"):
            reached = best.split.rate_rps if best else floor_rps
            split = best_split(table, tuple(int(o) for o in rows[i]), reached)
            if split is not None:
                best = Candidate(tuple(int(o) for o in rows[i]), split)
        return best

    def all_orders(self, members: Members) -> set[Members]:
        return set(permutations(members))


def _spread(at: Ints, rows: Ints) -> Ints:
    return np.broadcast_to(at, (len(rows), at.shape[1]))
